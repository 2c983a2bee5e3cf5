"""Images to put to a certifier of which nothing is known: structure, and seams between images that split the votes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.audit.certifier import AuditedCertifier
from robustpatch.threats.base import Patches


def structured(shape: tuple[int, int, int], number: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Black, white, grey, a slope, then stripes down and across, checks and noise in turn, in steps of 1/255."""
    channels, height, width = shape
    slope = torch.linspace(0, 1, width).expand(channels, height, width)
    found = [torch.zeros(shape), torch.ones(shape), torch.full(shape, 0.5), slope]
    while len(found) < number:
        kind = len(found) % 4
        levels = torch.tensor([0.0, 1.0] if int(torch.randint(2, (), generator=generator)) else [0.0, 1 / 3, 2 / 3, 1])
        size = [(channels, 1, width), (channels, height, 1), (channels, height, width), shape][kind]
        values = levels[torch.randint(len(levels), size, generator=generator)]
        found.append((torch.rand(shape, generator=generator) if kind == 3 else values).expand(shape))
    return (torch.stack(found[:number]) * 255).round() / 255


def seams(
    subject: AuditedCertifier,
    pool: Float[Tensor, "M C H W"],
    threat: Patches,
    pairs: int,
    most: int,
    generator: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """Composites that are certified, with a neighbour that is not: votes about to turn.

    Two images that are predicted differently are joined along a column or a row, at every position, or a window of one
    is set into the other; of each series those are kept that are next to losing the certificate. At most `most`.
    """
    predicted = subject.predict(pool)
    found: list[Tensor] = []
    number = len(pool)
    for _ in range(pairs):
        i, j = torch.randint(number, (2,), generator=generator).tolist()
        if predicted[i] == predicted[j]:
            continue
        for series in _series(pool[i], pool[j], generator):
            certified = subject.certify(series, threat).certified
            neighbour = torch.cat([certified[1:], certified[-1:]]) & torch.cat([certified[:1], certified[:-1]])
            found += list(series[certified & ~neighbour])
        if len(found) >= most:
            break
    return torch.stack(found[:most]) if found else pool[:0]


def _series(
    a: Float[Tensor, "C H W"], b: Float[Tensor, "C H W"], generator: torch.Generator
) -> Iterator[Float[Tensor, "T C H W"]]:
    for axis in (2, 1):
        length = a.shape[axis]
        position = torch.arange(length)
        steps = torch.arange(length + 1)[:, None]
        start = int(torch.randint(length, (), generator=generator))
        for inside in (position < steps, (position >= start) & (position < start + steps)):
            mask = inside[:, None, None, :] if axis == 2 else inside[:, None, :, None]
            yield torch.where(mask, a, b)

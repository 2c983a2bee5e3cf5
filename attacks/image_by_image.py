"""Attacks on images each of which has places of its own: one after the other, each under its own threat."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import Proposal
from attacks.criterion import Criterion
from robustpatch.threats.base import Patches


def image_by_image(
    run: Callable[..., Proposal],
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"] | Criterion,
    threat: Patches,
    generator: torch.Generator,
) -> Proposal:
    """Returns what an attack proposes for each image alone, under `threat.of_image`: the image where there is no place.

    Each image is given the same state of the generator, from which attacks draw for each image on its own.
    """
    state, found = generator.get_state(), list[Proposal]()
    for i, image in enumerate(x):
        one, own = x[i : i + 1], threat.of_image(image)
        if own is None:
            found.append(_none(one, threat))
            continue
        generator.set_state(state)
        aims = y.of(slice(i, i + 1)) if isinstance(y, Criterion) else y[i : i + 1]
        found.append(run(model, one, aims, own, generator=generator))
    if not found:
        return _none(x, threat)
    by = [name for one in found for name in one.by or [""]]
    patches = [each for one in found for each in one.patches or [frozenset[str]()]]
    broken = [torch.zeros_like(one.visited).bool() if one.broken is None else one.broken for one in found]
    return Proposal(
        x_adv=torch.cat([one.x_adv for one in found]),
        corners=torch.cat([one.corners for one in found]),
        evaluations=torch.cat([one.evaluations for one in found]),
        visited=torch.cat([one.visited for one in found]),
        by=by if any(by) else None,
        patches=patches if any(one.patches is not None for one in found) else None,
        broken=torch.cat(broken) if any(one.broken is not None for one in found) else None,
    )


def _none(x: Tensor, threat: Patches) -> Proposal:
    """Of images [B,C,H,W] on which no patch has a place: themselves."""
    corners = torch.zeros(len(x), threat.count, 2, dtype=torch.long, device=x.device)
    return Proposal(x.clone(), corners, corners[:, 0, 0].clone(), torch.zeros(len(x), device=x.device))

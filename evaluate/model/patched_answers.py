"""Patched images of each shard, predicted when it is written: a model that answers them otherwise is another."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.runs.records import Record
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.asking import predict
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

Answers = list[int | None]  # of each patched image; None where the model has no answer to it


def patched_images(
    x: Float[Tensor, "B C H W"], records: Sequence[Record], threat: Threat
) -> tuple[Float[Tensor, "9 C H W"], list[int]]:
    """Nine patched images and the indices of the images they are of: a white, a black and a noise patch, each at the
    upper left, in the middle and at the lower right, of the certified images of the batch in turn; of all, where none
    is certified. They depend on nothing but these images, which of them are certified, and the threat.
    """
    certified = [i for i, record in enumerate(records) if record.certified]
    chosen, one = certified or list(range(len(x))), threat.threats[0]
    (channels, height, width), (h, w) = x.shape[1:], (one.height, one.width)
    noise = torch.rand(channels, h, w, generator=torch.Generator().manual_seed(0)).to(x)
    places = ((0, 0), ((height - h) // 2, (width - w) // 2), (height - h, width - w))
    contents = (torch.ones_like(noise), torch.zeros_like(noise), noise)
    rows = [chosen[i % len(chosen)] for i in range(len(places) * len(contents))]
    found = x[rows].clone()
    for image, (content, (top, left)) in zip(found, product(contents, places), strict=True):
        image[:, top : top + h, left : left + w] = content
    return found, [records[i].index for i in rows]


@torch.no_grad()
def answers(model: torch.nn.Module, images: Float[Tensor, "P C H W"], batch: int) -> Answers:
    """Predict the images, `batch` at a time; all None where the model refuses one of them."""
    classifier = as_classifier(model)
    try:
        return [found for some in images.split(batch) for found in predict(classifier, some).tolist()]
    except InvalidInput:  # no class of outputs that are no numbers
        return [None] * len(images)


def first_differing(
    model: torch.nn.Module, images: Float[Tensor, "P C H W"], batch: int, before: Answers
) -> tuple[int, int | None, int | None] | None:
    """The number of the first patched image that the model answers otherwise than before, with both answers; None where
    there is none, or where rounding may be why: under a trace of noise its answer varies.
    """
    again = answers(model, images, batch)
    exact = all(tensor.dtype == torch.float32 for tensor in model.parameters())
    for number, (one, other) in enumerate(zip(before, again, strict=True)):
        if one != other and len(set(_noisy(model, images[number], 1e-4 if exact else 1e-2, batch))) == 1:
            return number, one, other
    return None


def _noisy(model: torch.nn.Module, image: Float[Tensor, "C H W"], scale: float, batch: int) -> Answers:
    noise = torch.randn(8, *image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    return answers(model, (image + scale * noise).clamp(0, 1), batch)

"""The classifier of a run held against float32 on the run's own images, where it computes in less."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evaluate.model.configured import measurable
from robustpatch.classifiers.witness import deviation_from_float32, refuse_beyond
from robustpatch.defenses import Defended
from robustpatch.defenses.masked_network import MaskedNetwork

IMAGES = 8  # of each batch
_UNIONS = 16  # of masks


def off_float32(model: nn.Module, x: Tensor) -> float | None:
    """The largest distance of a score from float32's on eight of the images, all ablations; None where the model
    computes in float32, or where it certifies in a way of its own, of which nothing is known.

    Of PatchCleanser it is of logits, under 16 of its masks; of a classifier without certificates, of the softmax.
    Raises `InvalidInput` for what rounding does not explain, and where it exceeds the guard.
    """
    x = x[:: max(1, len(x) // IMAGES)][:IMAGES]
    votes = measurable(model)
    if votes is not None:
        found = deviation_from_float32(votes, x)
        if found is not None:
            refuse_beyond(found, votes, x.device, votes.guard_on(x.device))
        return None if found is None else found.score
    if isinstance(model, MaskedNetwork):
        found = deviation_from_float32(model, x, _under_masks)
        if found is not None:
            refuse_beyond(found, model, x.device, model.guard_on(x.device), of_logits=True)
        return None if found is None else found.logit
    if hasattr(model, "certify"):
        return None
    network = model.network if isinstance(model, Defended) else model
    found = deviation_from_float32(measurable(network) or network, x)
    if found is not None:
        refuse_beyond(found, network, x.device)
    return None if found is None else found.score


def _under_masks(model: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(model, MaskedNetwork)
    unions = len(model.defense.mask_set(x.shape[2], x.shape[3]).unions)
    some = torch.linspace(0, unions - 1, min(unions, _UNIONS), device=x.device).round().long()
    image = torch.arange(len(x), device=x.device).repeat_interleave(len(some))
    return model.logits(x, image, some.repeat(len(x)))

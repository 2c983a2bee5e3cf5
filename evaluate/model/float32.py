"""The classifier of a run held against float32 on the run's own images, where it computes in less."""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor, nn

from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.calibration import deviation_from_float32, refuse_beyond
from robustpatch.classifiers.smoothed import guarded_classifier
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
    classifier, x = as_classifier(model), x[:: max(1, len(x) // IMAGES)][:IMAGES]
    votes = guarded_classifier(classifier)
    if votes is None:
        return _without_votes(classifier, x)
    found = deviation_from_float32(votes, x)
    if found is not None:
        refuse_beyond(found, votes, x.device, votes.guard_on(x.device))
    return None if found is None else found.score


@singledispatch
def _without_votes(classifier: Classifier, x: Tensor) -> float | None:
    return None if classifier.certifies else _of_scores(classifier.given, x)


@_without_votes.register
def _(classifier: Defended, x: Tensor) -> float | None:
    return None if classifier.certifies else _of_scores(classifier.network, x)


@_without_votes.register
def _(classifier: MaskedNetwork, x: Tensor) -> float | None:
    found = deviation_from_float32(classifier, x, _under_masks)
    if found is not None:
        refuse_beyond(found, classifier, x.device, classifier.guard_on(x.device), of_logits=True)
    return None if found is None else found.logit


def _of_scores(network: nn.Module, x: Tensor) -> float | None:
    found = deviation_from_float32(guarded_classifier(as_classifier(network)) or network, x)
    if found is not None:
        refuse_beyond(found, network, x.device)
    return None if found is None else found.score


def _under_masks(model: MaskedNetwork, x: Tensor) -> Tensor:
    unions = len(model.defense.mask_set(x.shape[2], x.shape[3]).unions)
    some = torch.linspace(0, unions - 1, min(unions, _UNIONS), device=x.device).round().long()
    image = torch.arange(len(x), device=x.device).repeat_interleave(len(some))
    return model.logits(x, image, some.repeat(len(x)))

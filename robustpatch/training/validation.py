"""Clean and certified accuracy of a classifier on many images, as training reports them after each epoch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from robustpatch.certificates.certificate import Certificate
from robustpatch.certificates.randomized import touched_chance
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.data.image_set import ImageSet
from robustpatch.defenses import Defended
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import first_argmax

_SAMPLE = 500  # images whose votes are sampled


@dataclass(frozen=True)
class Accuracy:
    """Shares of all images: predicted right; right and certified by the margin; right and certified exactly.

    The latter two are None where nothing was asked of a certificate, all where nothing was measured. Of a randomized
    classifier, from the votes of `enumerated` on the first 500 images: `base`, the share of single ablations that are
    classified right, and `certifiable`, of images where the share of the votes for the true class exceeds 1/2 + τ. No
    certificate: what those from many samples come near to.
    """

    clean: float | None = None
    certified_margin: float | None = None
    certified_exact: float | None = None
    base: float | None = None
    certifiable: float | None = None


@torch.no_grad()
def accuracy(
    model: nn.Module, images: ImageSet, threat: Threat | None, device: str = "cpu", *, count: int | None = None
) -> Accuracy:
    """Clean and certified accuracy on all of `images`, in evaluation mode; the mode is restored. Without a threat, as
    there is none for an undefended classifier, clean accuracy alone. With a `count`, on so many of them, spread evenly;
    defenses and randomized classifiers choose their own.
    """
    if isinstance(model, RandomizedClassifier):
        return _sampled_accuracy(model, images, threat, device)
    if isinstance(model, Defended):
        return _defended_accuracy(model, images, threat, device)
    total = len(images)
    chosen = torch.arange(total) if count is None or count >= total else torch.arange(count) * total // count
    training = model.training
    model.eval()
    hits = torch.zeros(1 if threat is None else 3, dtype=torch.long)
    try:
        for index in chosen.split(500):
            x, y = (tensor.to(device) for tensor in images.batch(index))
            if threat is None:
                found = [first_argmax(model(x)) == y]
            else:
                exact: Certificate = model.certify(x, threat)  # type: ignore[operator]
                right = exact.prediction == y
                found = [right, right & exact.by("margin").certified, right & exact.certified]
            hits += torch.stack([which.sum() for which in found]).cpu()
    finally:
        model.train(training)
    return Accuracy(*(hits / len(chosen)).tolist())


@torch.no_grad()
def _defended_accuracy(model: Defended, images: ImageSet, threat: Threat | None, device: str) -> Accuracy:
    """`clean` is of the first `predicted_in_training` images, `certified_exact` of the first `certified_in_training`,
    None where nothing is certified.
    """
    training = model.training
    model.eval()
    clean = certified = 0
    predicted = min(model.predicted_in_training or len(images), len(images))
    some = min(model.certified_in_training, len(images)) if hasattr(model, "certify") and threat is not None else 0
    try:
        for index in torch.arange(predicted).split(500):
            x, y = (tensor.to(device) for tensor in images.batch(index))
            clean += int((model.predict(x) == y).sum())
        for first in range(0, some, 100):
            x, y = (tensor.to(device) for tensor in images.batch(range(first, min(first + 100, some))))
            proved: Certificate = model.certify(x, threat)  # type: ignore[operator]
            certified += int((proved.certified & (proved.prediction == y)).sum())
    finally:
        model.train(training)
    return Accuracy(clean / predicted, certified_exact=certified / some if some else None)


@torch.no_grad()
def _sampled_accuracy(model: RandomizedClassifier, images: ImageSet, threat: Threat | None, device: str) -> Accuracy:
    training = model.training
    model.eval()
    try:
        x, y = (tensor.to(device) for tensor in images.batch(range(min(_SAMPLE, len(images)))))
        shares = model(x)
    finally:
        model.train(training)
    own = shares.gather(1, y[:, None])[:, 0]
    chance = None if threat is None else touched_chance(model.ablation, threat, *images.image_shape[1:])
    return Accuracy(
        clean=float((first_argmax(shares) == y).float().mean()),
        base=float(own.mean()),
        certifiable=None if chance is None else float((own > 0.5 + chance).float().mean()),
    )

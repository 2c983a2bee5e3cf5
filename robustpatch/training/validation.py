"""Clean and certified accuracy of a classifier on many images, as training reports them after each epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch

import torch
from torch import Tensor, nn

from robustpatch.certificates.randomized import touched_chance
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
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


@singledispatch
@torch.no_grad()
def accuracy(
    model: nn.Module, images: ImageSet, threat: Threat | None, device: str = "cpu", *, count: int | None = None
) -> Accuracy:
    """Clean and certified accuracy on all of `images`, in evaluation mode; the mode is restored. Without a threat, as
    there is none for an undefended classifier, clean accuracy alone. With a `count`, on so many of them, spread evenly;
    defenses and randomized classifiers choose their own.
    """
    return Accuracy(
        *_shares(model, images, _spread(images, count), 500, device, lambda x, y: [first_argmax(model(x)) == y])
    )


@accuracy.register(SmoothedClassifier)
@torch.no_grad()
def _(model: SmoothedClassifier, images, threat, device="cpu", *, count=None) -> Accuracy:
    def found(x: Tensor, y: Tensor) -> list[Tensor]:
        if threat is None:
            return [first_argmax(model(x)) == y]
        exact = model.certify(x, threat)
        right = exact.prediction == y
        return [right, right & exact.by("margin").certified, right & exact.certified]

    return Accuracy(*_shares(model, images, _spread(images, count), 500, device, found))


@accuracy.register(Defended)
@torch.no_grad()
def _(model: Defended, images, threat, device="cpu", *, count=None) -> Accuracy:
    """`clean` is of the first `predicted_in_training` images, `certified_exact` of the first `certified_in_training`,
    None where nothing is certified.
    """
    first = torch.arange(min(model.predicted_in_training or len(images), len(images)))
    (clean,) = _shares(model, images, first, 500, device, lambda x, y: [model.predict(x) == y])
    if threat is None or not isinstance(model, CertifiedClassifier):
        return Accuracy(clean)
    proving: CertifiedClassifier = model

    def proved(x: Tensor, y: Tensor) -> list[Tensor]:
        certificate = proving.certify(x, threat)
        return [certificate.certified & (certificate.prediction == y)]

    first = torch.arange(min(model.certified_in_training, len(images)))
    return Accuracy(clean, certified_exact=_shares(model, images, first, 100, device, proved)[0])


@accuracy.register(RandomizedClassifier)
@torch.no_grad()
def _(model: RandomizedClassifier, images, threat, device="cpu", *, count=None) -> Accuracy:
    chance = 1.0 if threat is None else touched_chance(model.ablation, threat, *images.image_shape[1:])
    few = torch.arange(min(_SAMPLE, len(images)))

    def found(x: Tensor, y: Tensor) -> list[Tensor]:
        shares = model(x)
        own = shares.gather(1, y[:, None])[:, 0]
        return [first_argmax(shares) == y, own, own > 0.5 + chance]

    clean, base, certifiable = _shares(model, images, few, _SAMPLE, device, found)
    return Accuracy(clean, base=base, certifiable=None if threat is None else certifiable)


def _spread(images: ImageSet, count: int | None) -> Tensor:
    total = len(images)
    return torch.arange(total) if count is None or count >= total else torch.arange(count) * total // count


def _shares(
    model: nn.Module,
    images: ImageSet,
    chosen: Tensor,
    batch: int,
    device: str,
    found: Callable[[Tensor, Tensor], list[Tensor]],
) -> list[float]:
    """The means of what is found of each of the chosen images [B], in evaluation mode; the mode is restored."""
    training, sums = model.training, 0.0
    model.eval()
    try:
        for index in chosen.split(batch):
            x, y = (tensor.to(device) for tensor in images.batch(index))
            sums = sums + torch.stack([one.double().sum() for one in found(x, y)]).cpu()
    finally:
        model.train(training)
    return (sums / len(chosen)).tolist()  # type: ignore[union-attr]

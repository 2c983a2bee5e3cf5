"""Ask about a few images once more, each alone, and a model that was asked nothing before: answers must be the same."""

from __future__ import annotations

import copy
from itertools import chain, count
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attacks.base import Outcome
from attacks.criterion import Criterion, counts_for
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.isolation import certify, classes_of
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

C = TypeVar("C", bound=nn.Module)
FEW = 8  # images of a batch, for each attack
_calls = count()
_WHY = (
    "the model's answers depend on chance, on earlier calls or on the other images of a batch; make them functions of "
    "the image, or certify with a confidence"
)


def fresh_copy(model: C) -> C:
    """Copy the model as it is now: what it is asked hereafter has no effect on the copy. Weights and buffers are
    shared, so that it costs little; of a model that cannot be copied, return the model itself.
    """
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        return copy.deepcopy(model, shared)
    except Exception:  # whatever the user's classes raise
        return model


def check_alone(
    fresh: Classifier,
    x_adv: Float[Tensor, "B C H W"],
    criterion: Criterion,
    outcome: Outcome,
    seen: Bool[Tensor, " B"] | None,
    first: list[int],
    attack: str,
) -> None:
    """Judge up to `FEW` of the certified images that `judge` found unchanged once more, each alone, by a `fresh_copy`.

    Raises `InvalidInput` where the answer is another, or where the search itself had `seen` the prediction change: then
    it cannot be said that the image held. `first`: the images' numbers.
    """
    held = outcome.contained & outcome.in_range & ~criterion.broken(outcome.prediction, outcome.counts)
    if seen is not None and bool((seen.to(held.device) & held).any()):
        i = int((seen.to(held.device) & held).nonzero()[0, 0])
        raise InvalidInput(
            f"image {first[i]} was certified, {attack} saw its prediction change, and judged beside the others it "
            f"is unchanged: {_WHY}"
        )
    rows = held.nonzero()[:, 0].tolist()
    kept = []  # as long as another is asked about, none is given the address of one that was
    for i in rows[:: max(1, -(-len(rows) // FEW))]:
        kept.append(_elsewhere(x_adv[i : i + 1]))
        answered, own = _answered(fresh, kept[-1]), criterion.of(slice(i, i + 1))
        counts = counts_for(fresh, own, kept[-1])
        if bool(own.broken(torch.tensor([answered], device=x_adv.device), counts)[0]):
            raise InvalidInput(
                f"image {first[i]} was certified and held under {attack} beside the other images, but alone and asked "
                f"afresh the prediction is {answered} instead of {int(criterion.y[i])}: {_WHY}"
            )


def check_clean(model: Classifier, x: Tensor, threat: Threat, certificate: Certificate, first: int) -> None:
    """Ask about the first certified image of a batch alone; raises `InvalidInput` where the answers are others.

    Of smoothed classifiers `certify` itself asks its base alone and in company.
    """
    rows = certificate.certified.nonzero()[:1, 0].tolist()
    if len(x) == 1 or voting_classifier(model) is model or not isinstance(model, CertifiedClassifier):
        return
    for i in rows:
        image, claimed = x[i : i + 1], int(certificate.prediction[i])
        answered = _answered(model, _elsewhere(image))
        if answered != claimed and not (model.alerts and answered < 0):
            raise InvalidInput(
                f"predict answers {claimed} for image {first + i} beside other images and {answered} for it alone: "
                + _WHY
            )
        again = certify(model, image, threat)
        if not bool(again.certified[0]) or int(again.prediction[0]) != claimed:
            raise InvalidInput(f"certify certifies image {first + i} beside other images and not alone: {_WHY}")


@torch.no_grad()
def _answered(model: Classifier, image: Float[Tensor, "1 C H W"]) -> int:
    """The prediction for this very tensor, of which `isolation.predict` would make a copy elsewhere."""
    return int(classes_of(model.predict(image), image, f"predict of {type(model.given).__name__}")[0])


def _elsewhere(x: Tensor) -> Tensor:
    """The same images at an address that no tensor of its own begins at: models have kept answers by address."""
    shift = 1 + 2 * (next(_calls) % 500)
    room = torch.empty(x.numel() + shift, dtype=x.dtype, device=x.device)
    return room[shift:].view(x.shape).copy_(x)

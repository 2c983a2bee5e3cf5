"""The criterion: when an attack on an image has succeeded. A value, which attacks pursue and the judge applies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from robustpatch.certificates.top_k import ranks
from robustpatch.classifiers import asking
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.lending import lent
from robustpatch.errors import InvalidInput

C = TypeVar("C", bound="Criterion")


@dataclass(frozen=True, eq=False)
class Criterion(ABC):
    """One condition for each of B images, on what the classifier answers under a patch.

    Attributes:
        y: Int[B], the class that an attack moves the image away from.
    """

    y: Int[Tensor, " B"]
    needs_counts: ClassVar[bool] = False  # whether `broken` reads the counts

    @abstractmethod
    def broken(self, prediction: Int[Tensor, " B"], counts: Num[Tensor, "B K"] | None) -> Bool[Tensor, " B"]:
        """Tell where the attack has succeeded, by the answers to patched images and the `counts` of each class."""

    @property
    def rival(self) -> Int[Tensor, " B"]:
        """The class to be raised, -1: whichever is nearest."""
        return torch.full_like(self.y, -1)

    @property
    def rank(self) -> int:
        """The number of classes that must come before y."""
        return 1

    def of(self: C, rows: Tensor | slice) -> C:
        """The same for some of the images."""
        return self._with(lambda part: part[rows])

    def to(self: C, device: torch.device) -> C:
        """The same with its classes as int64 copies on that device."""
        return self._with(lambda part: part.to(device, torch.long, copy=True))

    def _with(self: C, change: Callable[[Tensor], Tensor]) -> C:
        parts = {one.name: getattr(self, one.name) for one in fields(self)}
        return replace(self, **{name: change(part) for name, part in parts.items() if isinstance(part, Tensor)})


@dataclass(frozen=True, eq=False)
class Changed(Criterion):
    """The prediction is not y any more; an abstention (-1) is not y either."""

    def broken(self, prediction: Int[Tensor, " B"], counts: Num[Tensor, "B K"] | None) -> Bool[Tensor, " B"]:
        return prediction != self.y


@dataclass(frozen=True, eq=False)
class Became(Criterion):
    """The prediction is `target`, which is another class than y."""

    target: Int[Tensor, " B"]

    def broken(self, prediction: Int[Tensor, " B"], counts: Num[Tensor, "B K"] | None) -> Bool[Tensor, " B"]:
        return prediction == self.target

    @property
    def rival(self) -> Int[Tensor, " B"]:
        return self.target


@dataclass(frozen=True, eq=False)
class OutOfTopK(Criterion):
    """y is not among the k classes with the highest counts, the lower index first among equals; nor where the
    classifier abstains. What a `TopKCertificate` rules out.
    """

    k: int
    needs_counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InvalidInput(f"k is {self.k}; it must be at least 1")

    def broken(self, prediction: Int[Tensor, " B"], counts: Num[Tensor, "B K"] | None) -> Bool[Tensor, " B"]:
        assert counts is not None  # as `needs_counts` says
        return (ranks(counts, self.y) >= self.k) | (prediction < 0)

    @property
    def rank(self) -> int:
        return self.k


@dataclass(frozen=True, eq=False)
class NoAlert(Criterion):
    """The prediction is neither y nor `alert`: the attack is not noticed. For certificates that recover or alert."""

    alert: int = -1

    def broken(self, prediction: Int[Tensor, " B"], counts: Num[Tensor, "B K"] | None) -> Bool[Tensor, " B"]:
        return (prediction != self.y) & (prediction != self.alert)


def as_criterion(given: Criterion | Tensor) -> Criterion:
    """The criterion itself; of labels [B], that the prediction changes from them."""
    return given if isinstance(given, Criterion) else Changed(given)


def is_broken(
    classifier: Classifier,
    criterion: Criterion,
    prediction: Int[Tensor, " B"],
    counts: Num[Tensor, "B K"] | None = None,
) -> Bool[Tensor, " B"]:
    """Tell where these answers meet the criterion. Of a randomized classifier an abstention (-1) says nothing."""
    return criterion.broken(prediction, counts) & ((prediction >= 0) | (not classifier.randomized))


@torch.no_grad()
def counts_for(classifier: Classifier, criterion: Criterion, x: Float[Tensor, "B C H W"]) -> Num[Tensor, "B K"] | None:
    """The counts of the images, where the criterion needs them."""
    if not criterion.needs_counts:
        return None
    counts = classifier.counts(lent(x))
    if counts.is_floating_point():
        raise InvalidInput(
            f"the criterion asks which classes are the most voted, but {type(classifier.given).__name__} counts no "
            "votes; take Changed"
        )
    return counts


def asked(
    classifier: Classifier, criterion: Criterion, x: Float[Tensor, "B C H W"]
) -> tuple[Bool[Tensor, " B"], Int[Tensor, " B"], Int[Tensor, " B"]]:
    """Ask about patched images: where the criterion is met, the predictions, and the evaluations that it took."""
    prediction, spent = asking.predict_with_cost(classifier, x)
    counts = counts_for(classifier, criterion, x)
    if counts is not None:
        spent = spent + classifier.cost(x.shape[2], x.shape[3])[0]
    return is_broken(classifier, criterion, prediction, counts), prediction, spent

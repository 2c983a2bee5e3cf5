"""Surfaces: classifiers as a search sees them. Where patches may succeed, what a try costs, and differentiable views.

`surface_of` chooses by the classifier's type. A defense with an adaptive attack is a subclass of `Surface` and one
registration, here or in anybody's own file:

    @surface_of.register
    def _(classifier: MyDefense, attacked: Attacked, pruned: bool) -> Surface:
        return MySurface(classifier, attacked) if pruned else Surface(classifier, attacked)

Unless `pruned`, a surface leans on nothing that a certificate says and scores attacked images whole: what it tests are
certificates. Where its outputs have no gradient to climb, `whole_view_class` (`attacks.surfaces.views`) takes another
view of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.surfaces.views import Objective, View, whole_view
from robustpatch.classifiers import isolation
from robustpatch.classifiers.base import Classifier
from robustpatch.threats.base import Patches

Site = tuple[tuple[int, ...], int]  # the numbers of one placement for each patch; the class to aim at, -1: whichever


@dataclass(frozen=True)
class OpenPlacements:
    """The placements at which one image can be attacked, by number, cheapest first, and the rivals cheapest there.

    `rivals` are the classes that the certificate leaves in reach there, cheapest first, padded with -1. Without a
    certificate all placements are open, in random order, the rival always -1 (whichever is nearest).
    """

    placement: Int[Tensor, " L"]
    rivals: Int[Tensor, "L R"]
    touched_set: Int[Tensor, " L"]

    @classmethod
    def in_order(cls, placement: Int[Tensor, " L"], touched_set: Int[Tensor, " L"] | None = None) -> OpenPlacements:
        """These placements, towards whichever rival is nearest; all of one touched set unless it is given."""
        touched_set = torch.zeros_like(placement) if touched_set is None else touched_set
        return cls(placement, torch.full_like(placement[:, None], -1), touched_set)

    def __len__(self) -> int:
        return len(self.placement)

    def tasks(self) -> list[tuple[int, int]]:
        """Every placement in order, towards whichever rival is nearest; then towards the second cheapest, and so on."""
        placement, rivals = self.placement.tolist(), self.rivals.tolist()
        first = [(site, -1) for site in placement]
        turns = range(1, self.rivals.shape[1])
        return first + [(s, row[k]) for k in turns for s, row in zip(placement, rivals, strict=True) if row[k] >= 0]

    def spread(self) -> Iterator[tuple[int, int]]:
        """Placements and their cheapest rival, one of each touched set in turn, cheapest set first: for a few tries."""
        seen: dict[int, int] = {}
        turns = []
        for position, s in enumerate(self.touched_set.tolist()):
            turns.append((seen.get(s, 0), position))
            seen[s] = seen.get(s, 0) + 1
        for _, position in sorted(turns):
            yield int(self.placement[position]), int(self.rivals[position, 0])


@dataclass(frozen=True)
class Attacked:
    """The images under attack: x [B,C,H,W], the classes y [B] to move away from, the threat, the budget in evaluations
    an image (None: no limit), and how many classes must come before y.
    """

    x: Float[Tensor, "B C H W"]
    y: Int[Tensor, " B"]
    threat: Patches
    budget: int | None = None
    rank: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.x.shape[2], self.x.shape[3]


class Surface:
    """A classifier of which nothing is known but its answers; the base of those of which more is.

    Attributes:
        prediction: Int[B], the answers to the clean images. evaluations: Int[B], the account: what was spent so far.
        forward_cost: evaluations of scoring one image whole.
        guides: whether it tells open placements from closed ones, for attacks that go to a few of them.
        blind: whether the best that is known of placements is to try a random patch at each.
        groups: whether it chooses placements of several patches together (see `several`).
        enough: the lead over the strongest class beyond which an image counts as won in training a universal patch.
    """

    guides: bool = False
    blind: bool = True
    groups: ClassVar[bool] = False
    enough: float = 5.0  # logits

    def __init__(self, classifier: Classifier, attacked: Attacked) -> None:
        self.classifier, self.attacked = classifier, attacked
        self.forward_cost, self.predict_cost = classifier.cost(*attacked.size)
        self.prediction, self.evaluations = self._clean()

    def _clean(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The answers to the clean images, and what they cost."""
        return isolation.predict_with_cost(self.classifier, self.attacked.x)

    @property
    def climb_cost(self) -> int:
        """Evaluations of one forward pass at one placement, at the most."""
        return self.forward_cost

    @property
    def asking_cost(self) -> int:
        """Evaluations an image that `open_placements` takes."""
        return 0

    def view(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> View:
        """Attacked copies of these images, patched at these placements (by number)."""
        x, y = self.attacked.x[image], self.attacked.y[image]
        return whole_view(self.classifier, x, y, rival, objective, self.attacked.rank)

    def open_placements(self, shuffled: list[Int[Tensor, " L"]], rivals: int) -> list[OpenPlacements]:
        """Of each image the placements that are open, most promising first, equals in the order of `shuffled`, with at
        most so many rivals each. Asked only where the threat is one patch.
        """
        return [OpenPlacements.in_order(order) for order in shuffled]

    def several(self, image: int, chance: torch.Generator) -> Iterator[Site]:
        """Sites of several patches chosen together, for ever; asked only of a surface that `groups`."""
        raise NotImplementedError


@singledispatch
def surface_of(classifier: Classifier, attacked: Attacked, pruned: bool) -> Surface:
    """The surface of the images to a search of this classifier. `pruned`: it may lean on what is known of it."""
    return Surface(classifier, attacked)

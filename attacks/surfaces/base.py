"""How a classifier looks to a search: where patches may succeed, what a try costs, and a differentiable view of it.

`surface_of` chooses by the classifier's type. A defense with an adaptive attack is a subclass of `Surface` and one
registration, here or in anybody's own file:

    @surface_of.register
    def _(classifier: MyDefense, attacked: Attacked, pruned: bool) -> Surface:
        return MySurface(classifier, attacked) if pruned else Surface(classifier, attacked)

Unless `pruned`, a surface leans on nothing that a certificate says and scores attacked images whole: what it tests are
certificates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import ClassVar, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.certificates.top_k import ranks
from robustpatch.classifiers import isolation
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.voting.votes import first_argmax

Objective = Literal["votes", "mean-softmax"]
Site = tuple[tuple[int, ...], int]  # the numbers of one placement for each patch; the class to aim at, -1: whichever
V = TypeVar("V", bound="View")
T = TypeVar("T", bound="Towards")
W = TypeVar("W", bound="WholeView")


def check_objective(objective: str) -> None:
    """Refuse a name that is no objective."""
    if objective not in get_args(Objective):
        raise InvalidInput(f"attack objective is {objective!r}; use one of {', '.join(get_args(Objective))}")


@runtime_checkable
class View(Protocol):
    """P attacked images, one a row. `cost` [P] is the number of evaluations of one forward pass."""

    @property
    def cost(self) -> Int[Tensor, " P"]: ...

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        """The objective, the smaller the nearer to success, with its gradient; and the prediction (where several
        classes must come before y, y as long as fewer do).
        """
        ...

    def keep(self: V, rows: Tensor) -> V:
        """The same for some of the rows."""
        ...

    def join(self: V, other: V) -> V:
        """Both, the rows of `other` last."""
        ...

    def towards(self, target: int) -> View:
        """The same with the objective of bringing about that class."""
        ...


@dataclass(frozen=True)
class Towards:
    """A view of rows whose y is the class to be brought about: its objective is the other one's negative."""

    view: View

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return self.view.cost

    def keep(self: T, rows: Tensor) -> T:
        return replace(self, view=self.view.keep(rows))

    def join(self: T, other: T) -> T:
        return replace(self, view=self.view.join(other.view))

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        value, prediction = self.view(x_adv)
        return -value, prediction

    def towards(self, target: int) -> View:
        return self.view.towards(target)


@dataclass(frozen=True)
class WholeView:
    """Any classifier, scored whole, by its outputs.

    `rival` is the class to be raised against y, or -1: the one of that `rank` (1: the strongest) at each step.
    `objective`:

    - "votes": the output of y less that of the rival; below zero about when it succeeds.
    - "mean-softmax": log of the softmax of y (less that of the rival, if one is named): the cross-entropy that Chiang
      et al. climb.
    """

    classifier: Classifier
    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    cost: Int[Tensor, " P"]
    objective: Objective = "votes"
    rank: int = 1

    def keep(self: W, rows: Tensor) -> W:
        return replace(self, y=self.y[rows], rival=self.rival[rows], cost=self.cost[rows])

    def join(self: W, other: W) -> W:
        parts = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in ("y", "rival", "cost")}
        return replace(self, **parts)

    def towards(self, target: int) -> View:
        return Towards(replace(self, y=torch.full_like(self.y, target)))

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        logits = self.classifier.outputs(x_adv).float()
        soft = logits if self.objective == "votes" else logits.log_softmax(dim=1)
        return self._value(soft), answered(logits.detach(), self.y, self.rank)

    def _value(self, soft: Float[Tensor, "P K"]) -> Float[Tensor, " P"]:
        return value_of(soft, self.y, self.rival, self.objective, rank=self.rank)


@singledispatch
def whole_view(
    classifier: Classifier,
    x: Float[Tensor, "P C H W"],
    y: Int[Tensor, " P"],
    rival: Int[Tensor, " P"] | None = None,
    objective: Objective = "votes",
    rank: int = 1,
) -> View:
    """A view of the classifier that scores it whole and leans on nothing; by default, of its outputs."""
    return view_as(WholeView, classifier, x, y, rival, objective, rank)


def view_as(
    kind: type[WholeView],
    classifier: Classifier,
    x: Float[Tensor, "P C H W"],
    y: Int[Tensor, " P"],
    rival: Int[Tensor, " P"] | None,
    objective: Objective,
    rank: int,
) -> WholeView:
    """Such a view of these images."""
    forward, _ = classifier.cost(x.shape[2], x.shape[3])
    rival = torch.full_like(y, -1) if rival is None else rival
    return kind(classifier, y, rival, torch.full_like(y, forward), objective, rank)


def answered(counts: Tensor, y: Int[Tensor, " P"], rank: int) -> Int[Tensor, " P"]:
    """The class of the highest count; where several must come before y, y as long as fewer do."""
    first = first_argmax(counts)
    if rank == 1:
        return first
    return torch.where(ranks(counts, y) < rank, y, first)


def value_of(
    soft: Tensor, y: Tensor, rival: Tensor, objective: Objective, reach: Tensor | None = None, rank: int = 1
) -> Float[Tensor, " P"]:
    """The objective, of what each class has: see `WholeView`."""
    if objective == "votes" or rank > 1:
        return gap(soft, y, rival, reach, rank)
    own, named = (soft.gather(1, k[:, None])[:, 0] for k in (y, rival.clamp(min=0)))
    return own - torch.where(rival >= 0, named, 0.0)


def gap(
    soft: Float[Tensor, "P K"], y: Int[Tensor, " P"], rival: Int[Tensor, " P"], reach: Tensor | None, rank: int = 1
) -> Float[Tensor, " P"]:
    """What y has less what the rival has: where none is named, the one of that rank among those in `reach`."""
    own, named = (soft.gather(1, k[:, None])[:, 0] for k in (y, rival.clamp(min=0)))
    others = soft.scatter(1, y[:, None], -torch.inf)
    others = others if reach is None else others.masked_fill(~reach, -torch.inf)
    if rank > 1:
        strongest = others.topk(min(rank, others.shape[1] - 1), dim=1).values[:, -1]
    else:
        strongest = others.amax(dim=1)
    return own - torch.where(rival >= 0, named, strongest)


@dataclass(frozen=True)
class OpenPlacements:
    """Where one image can be attacked at all: placements by number, cheapest first, and the rivals cheapest there.

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
        rest = [(s, row[k]) for k in turns for s, row in zip(placement, rivals, strict=True) if row[k] >= 0]
        return first + rest

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
    """

    guides: ClassVar[bool] = False
    """Whether it tells open placements from closed ones, for attacks that go to a few of them."""

    blind: ClassVar[bool] = True
    """Whether the best that is known of placements is to try a random patch at each."""

    groups: ClassVar[bool] = False
    """Whether it chooses placements of several patches together (see `several`)."""

    enough: float = 5.0
    """The lead over the strongest class beyond which an image counts as won in training a universal patch: logits."""

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
        """How attacked copies of these images look, patched at these placements (by number)."""
        x, y = self.attacked.x[image], self.attacked.y[image]
        return whole_view(self.classifier, x, y, rival, objective, self.attacked.rank)

    def open_placements(self, shuffled: list[Int[Tensor, " L"]], rivals: int) -> list[OpenPlacements]:
        """Of each image the placements that are open, most promising first, equals in the order of `shuffled`, with at
        most so many rivals each. Of several patches: of the first one, whatever the others are.
        """
        return [OpenPlacements.in_order(order) for order in shuffled]

    def several(self, image: int, chance: torch.Generator) -> Iterator[Site]:
        """Sites of several patches chosen together, for ever; asked only of a surface that `groups`."""
        raise NotImplementedError


@singledispatch
def surface_of(classifier: Classifier, attacked: Attacked, pruned: bool) -> Surface:
    """How the images look to a search of this classifier. `pruned`: the search may lean on what is known of it."""
    return Surface(classifier, attacked)

"""PatchCleanser as an attack sees it: where its answer can be changed at all, and what has to give way there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, Objective, OpenPlacements, Site, Surface, View, surface_of
from robustpatch.defenses.double_masking import by_doubt, closed, infer, leads
from robustpatch.defenses.masking import MaskSet
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.threats.base import Patches
from robustpatch.voting.silence import has_score

V = TypeVar("V", bound="CleansedView")
_LOOKS = 4  # the share of the budget, 1 in so many, that looks at a clean image may take
_DRAWN = 64  # choices of several placements that are ordered at once
_NEAR, _FAR = 8, 4  # views asked at each step, a patch: of those that hide part of it, and that show it all


@dataclass(frozen=True)
class CleanMaskedPredictions:
    """What PatchCleanser says of B clean images under unions of masks, as far as a patch is concerned.

    A patch changes the answer only where no view that hides it is steady (`double_masking.closed`). There, most views
    are to name another class, and each that still names y is to be shaken by some second view, lest it dissent and
    stand. The hardest are those that hide nearly all of the patch.

    Attributes:
        prediction: Int[B]. evaluations: Int[B], what the looks cost.
        lead: Float[B,V], of the prediction over the best other class, less twice the guard, under each view and the
            second view `weakest` (Int[B,V]) that makes it least. The view is steady where that is above 0 ...
        complete: Bool[B,V], ... and all second views were looked at.
    """

    model: PatchCleanser
    masks: MaskSet
    threat: Patches
    prediction: Int[Tensor, " B"]
    evaluations: Int[Tensor, " B"]
    lead: Float[Tensor, "B V"]
    weakest: Int[Tensor, "B V"]
    complete: Bool[Tensor, "B V"]

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: PatchCleanser, x: Float[Tensor, "B C H W"], threat: Patches, most: int | None = None
    ) -> CleanMaskedPredictions:
        """All looks, or `predict`'s and so many others as make `most` evaluations, the least sure first."""
        masks, each = model.defense.mask_set(*x.shape[2:]), model.each(*x.shape[2:])
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        views = none.new_zeros(0, len(masks.views))
        found = [(none, none, views.float(), views, views.bool())]
        for looks in model.looks(x.clone()):
            answer = infer(looks)
            image = torch.arange(len(answer), device=x.device)
            union = by_doubt(looks, image)
            union = union[:, : union.shape[1] if most is None else max(0, most // each - looks.views)]
            looks.ask(image[:, None].expand_as(union), union)
            lead, weakest, complete = leads(looks, answer, model.guard_on(x.device))
            found.append((answer, looks.evaluations * each, lead, weakest, complete))
        return cls(model, masks, threat, *(torch.cat(part) for part in zip(*found, strict=True)))

    @cached_property
    def share(self) -> Float[Tensor, "L V"]:
        """The share of one rectangle that each view hides, at each placement; 1 exactly where it hides all of it."""
        height, width = self.threat.height, self.threat.width
        hidden = self.masks.hidden()[self.masks.views].any(dim=1).float()
        pixels = torch.nn.functional.avg_pool2d(hidden[:, None], (height, width), stride=1, divisor_override=1)
        return (pixels.flatten(1).T / (height * width)).to(self.lead.device)

    @cached_property
    def open(self) -> Bool[Tensor, "B L"]:
        """Where one patch may change the prediction: no view that hides it is known to be steady."""
        return ~closed((self.lead > 0) & self.complete, self.share == 1)

    @cached_property
    def hold(self) -> Float[Tensor, "B L"]:
        """How hard one patch looks at each placement: the most that a view holds, its lead by the share it hides."""
        some = [(self.share * lead.clamp(min=0)).amax(dim=1) for lead in self.lead]
        return torch.stack(some) if some else self.lead.new_zeros(0, len(self.share))

    def several(self, image: int, number: int, chance: torch.Generator) -> Int[Tensor, "M count"]:
        """So many random choices of placements of all patches, each hidden by one of the views least steady; by how
        much any view holds them, the least first.
        """
        lead, share = self.lead[image], self.share
        order = lead.argsort()[: max(1, int((lead <= 0).sum()))]
        drawn = torch.rand(number, self.threat.count, len(share), generator=chance).to(lead.device)
        view = order[torch.arange(number, device=lead.device) % len(order)]
        placement = drawn.masked_fill((share.T[view] < 1)[:, None], -1).argmax(dim=2)
        hold = (share[placement].mean(dim=1) * lead.clamp(min=0)).amax(dim=1)
        return placement[hold.argsort(stable=True)]

    @property
    def cost(self) -> int:
        """Evaluations of one forward pass of a view, at the most."""
        return self._each * (2 * self._asked(_NEAR) + self._asked(_FAR))

    @property
    def _each(self) -> int:
        return self.model.each(*self.masks.image_size)

    def _asked(self, views: int) -> int:
        return min(views * self.threat.count, len(self.masks.views))

    def view(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        y: Int[Tensor, " P"],
        rival: Int[Tensor, " P"] | None = None,
    ) -> CleansedView:
        """These images, by number, attacked at these placements."""
        share, pair = self.share[placement].mean(dim=1), self.masks.pair.to(y.device)
        lead, hides = self.lead[image], (self.share[placement] == 1).all(dim=1)
        steady = torch.where(self.complete[image], lead, lead.clamp(max=0)).masked_fill(~hides, -torch.inf)
        holding, near = (share * lead.clamp(min=0)).masked_fill(hides, 0).topk(self._asked(_NEAR), dim=1)
        far = _spread(share, self._asked(_FAR))
        first, second = pair[near, near], pair[near, self.weakest[image].gather(1, near)]
        held, shown = holding > 0, ~hides.gather(1, far)
        shown[:, 0] = True  # where no view shows any of the patch there is nothing to climb, but a step costs something
        valid = torch.cat([held, held & (second != first), shown], dim=1)
        return CleansedView(
            self.model,
            y,
            torch.full_like(y, -1) if rival is None else rival,
            torch.cat([first, second, pair[far, far]], dim=1),
            valid,
            steady.amax(dim=1),
            near.shape[1],
            self._each,
        )


def _spread(share: Float[Tensor, "P V"], most: int) -> Int[Tensor, "P M"]:
    """So many of the views that hide least of the patch, spread evenly among those that hide nothing of it."""
    order = share.argsort(dim=1, stable=True)
    free = (share == 0).sum(dim=1, keepdim=True).clamp(min=most)
    step = torch.arange(most, device=share.device) * free // most
    return order.gather(1, step)


@dataclass(frozen=True)
class CleansedView:
    """P attacked images of which a few views are asked: `near` that hide part of the patch, and some that show it all.

    A view is turned when it names the rival, or is shaken by its second view: the less of both leads of y says how far
    that is. The objective is log Σ exp of these over the views asked, with what the view `steady` holds that hides the
    patch, less its value where all are 0. Below zero, and where that one is not steady, `predict` is worth asking: on
    MNIST it was changed in 33 of 48 such cases, and in 21 of 357 others.

    Attributes:
        rival: Int[P], or -1: the class strongest in sum where the patch shows, at each step.
        union: Int[P,N], first `near` views, then each of them with its second view, then the others. valid: Bool[P,N].
        steady: Float[P], the most by which a view leads that hides the patch, whatever it shows; -inf without one.
        each: evaluations of one union.
    """

    model: PatchCleanser
    y: Int[Tensor, " P"]
    rival: Int[Tensor, " P"]
    union: Int[Tensor, "P N"]
    valid: Bool[Tensor, "P N"]
    steady: Float[Tensor, " P"]
    near: int
    each: int

    _ROWS: ClassVar[tuple[str, ...]] = ("y", "rival", "union", "valid", "steady")

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return self.valid.sum(dim=1) * self.each

    def keep(self: V, rows: Tensor) -> V:
        return replace(self, **{name: getattr(self, name)[rows] for name in self._ROWS})

    def join(self: V, other: V) -> V:
        return replace(self, **{name: torch.cat([getattr(self, name), getattr(other, name)]) for name in self._ROWS})

    def towards(self, target: int) -> View:
        """Its views are about y: the target is its rival."""
        return replace(self, rival=torch.full_like(self.y, target))

    def __call__(self, x_adv: Float[Tensor, "P C H W"]) -> tuple[Float[Tensor, " P"], Int[Tensor, " P"]]:
        row, place = self.valid.nonzero(as_tuple=True)
        logits = self.model.logits(x_adv.clone(), row, self.union[row, place])
        logits = torch.where(has_score(logits.detach()), logits, 0)  # a silent look names no class: none leads there
        scores = logits.new_zeros(*self.union.shape, logits.shape[1]).index_put((row, place), logits)
        near, second, far = scores.split([self.near, self.near, scores.shape[1] - 2 * self.near], dim=1)
        strongest = _others(far.detach().sum(dim=1), self.y).argmax(dim=1)
        rival = torch.where(self.rival >= 0, self.rival, strongest)
        shaken = _own(second, self.y) - _others(second, self.y).amax(dim=2)
        shaken = shaken.masked_fill(~self.valid[:, self.near : 2 * self.near], torch.inf)
        turned = torch.minimum(_own(near, self.y) - _own(near, rival), shaken)
        left = torch.cat([turned, _own(far, self.y) - _own(far, rival)], dim=1)
        asked = torch.cat([self.valid[:, : self.near], self.valid[:, 2 * self.near :]], dim=1)
        left = torch.cat([left.masked_fill(~asked, -torch.inf), self.steady[:, None]], dim=1)
        value = left.logsumexp(dim=1) - (asked.sum(dim=1) + 1).log()
        return value, torch.where((value < 0) & (self.steady <= 0), rival, self.y)


def _own(scores: Float[Tensor, "P N K"], y: Int[Tensor, " P"]) -> Float[Tensor, "P N"]:
    return scores.gather(2, y[:, None, None].expand(-1, scores.shape[1], 1))[..., 0]


def _others(scores: Float[Tensor, "P *N K"], y: Int[Tensor, " P"]) -> Float[Tensor, "P *N K"]:
    """The scores without those of y."""
    index = y.view(-1, *(1,) * (scores.ndim - 1)).expand(*scores.shape[:-1], 1)
    return scores.scatter(-1, index, -torch.inf)


class CleansedLooks(Surface):
    """PatchCleanser searched by a few views at each placement, chosen by its looks at the clean images."""

    guides = True
    blind = False
    groups = True

    def __init__(self, classifier: PatchCleanser, attacked: Attacked) -> None:
        budget = attacked.budget
        most = None if budget is None else budget // _LOOKS
        self.looks = CleanMaskedPredictions.of(classifier, attacked.x, attacked.threat, most)
        super().__init__(classifier, attacked)

    def _clean(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        return self.looks.prediction, self.looks.evaluations

    @property
    def climb_cost(self) -> int:
        return self.looks.cost

    def view(
        self, image: Tensor, placement: Tensor, rival: Tensor | None = None, objective: Objective = "votes"
    ) -> View:
        return self.looks.view(image, placement, self.attacked.y[image], rival)

    def open_placements(self, shuffled: list[Tensor], rivals: int) -> list[OpenPlacements]:
        """Where no steady view hides the patch, those first that no view holds; one of each set of views that hide it
        in turn. Of several patches, every placement.
        """
        looks = self.looks
        sets = torch.unique(looks.share == 1, dim=0, return_inverse=True)[1]
        found = []
        for hold, open_, order in zip(looks.hold, looks.open, shuffled, strict=True):
            order = order[hold[order].argsort(stable=True)]
            if self.attacked.threat.count == 1:
                order = order[open_[order]]
            found.append(OpenPlacements.in_order(order, sets[order]))
        return found

    def several(self, image: int, chance: torch.Generator) -> Iterator[Site]:
        """Where a view hides them all that can be shaken."""
        while True:
            for placement in self.looks.several(image, _DRAWN, chance).tolist():
                yield tuple(placement), -1


@surface_of.register
def _(classifier: PatchCleanser, attacked: Attacked, pruned: bool) -> Surface:
    return CleansedLooks(classifier, attacked) if pruned else Surface(classifier, attacked)

"""PatchCleanser as an attack sees it: where its answer can be changed at all, and what has to give way there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.surfaces.base import Attacked, OpenPlacements, Site, Surface, surface_of
from attacks.surfaces.views import Objective, View
from robustpatch.defenses.double_masking import by_doubt, closed, infer, leads
from robustpatch.defenses.masked_network import MaskedNetwork
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.voting.silence import has_score

_LOOKS = 4  # the share of the budget, 1 in so many, that looks at a clean image may take
_DRAWN = 64  # choices of several placements that are ordered at once
_NEAR, _FAR = 8, 4  # views asked at each step, a patch: of those that hide part of it, and that show it all


class PatchCleanserSurface(Surface):
    """PatchCleanser searched by a few views at each placement, chosen by its answers to the clean images under masks.

    A patch changes the answer only where no view that hides it is steady (`double_masking.closed`). There, most views
    are to name another class, and each that still names y is to be shaken by some second view, lest it dissent and
    decide. The hardest are those that hide nearly all of the patch.

    Of a budget, a quarter at most looks at clean images, beside what `predict` needs: the least sure first.

    Attributes:
        lead: Float[B,V], of the prediction over the best other class, less twice the guard, under each view and the
            second view `weakest` (Int[B,V]) that makes it least. The view is steady where that is above 0 ...
        complete: Bool[B,V], ... and all second views were looked at.
    """

    guides = True
    blind = False
    groups = True

    def __init__(self, classifier: MaskedNetwork, attacked: Attacked) -> None:
        self.model = classifier
        self.masks, self.each = classifier.defense.mask_set(*attacked.size), classifier.each(*attacked.size)
        super().__init__(classifier, attacked)

    @torch.no_grad()
    def _clean(self) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        x, budget = self.attacked.x, self.attacked.budget
        none = torch.zeros(0, dtype=torch.long, device=x.device)
        views = none.new_zeros(0, len(self.masks.views))
        found = [(none, none, views.float(), views, views.bool())]
        for looks in self.model.looks(x.clone()):
            answer = infer(looks)
            image = torch.arange(len(answer), device=x.device)
            union = by_doubt(looks, image)
            if budget is not None:
                union = union[:, : max(0, budget // _LOOKS // self.each - looks.views)]
            looks.ask(image[:, None].expand_as(union), union)
            found.append((answer, looks.evaluations * self.each, *leads(looks, answer, self.model.guard_on(x.device))))
        prediction, spent, self.lead, self.weakest, self.complete = (
            torch.cat(part) for part in zip(*found, strict=True)
        )
        return prediction, spent

    @cached_property
    def shares(self) -> list[Float[Tensor, "L V"]]:
        """The share of each patch that each view hides, at its placements; 1 exactly where it hides all of it."""
        families = self.attacked.threat.families(*self.attacked.size)
        hidden, known = self.masks.hidden()[self.masks.views].any(dim=1), {}
        for family in dict.fromkeys(families):
            share, wholly = family.means(hidden.float()).T, family.inside(hidden)
            known[family] = torch.where(wholly, 1, share.clamp(max=1 - 1e-6)).to(self.lead.device)
        return [known[family] for family in families]

    def _share(self, placement: Int[Tensor, "P count"]) -> Float[Tensor, "P count V"]:
        """The same at these placements, by number."""
        return torch.stack([share[placement[:, k]] for k, share in enumerate(self.shares)], dim=1)

    @cached_property
    def open(self) -> Bool[Tensor, "B L"]:
        """True where one patch may change the prediction: no view that hides it is known to be steady."""
        return ~closed((self.lead > 0) & self.complete, self.shares[0] == 1)

    @cached_property
    def resistance(self) -> Float[Tensor, "B L"]:
        """Against one patch at each placement: the largest lead of a view, by the share that it hides."""
        some = [(self.shares[0] * lead.clamp(min=0)).amax(dim=1) for lead in self.lead]
        return torch.stack(some) if some else self.lead.new_zeros(0, len(self.shares[0]))

    def open_placements(self, shuffled: list[Tensor], rivals: int) -> list[OpenPlacements]:
        """The placements that no steady view hides, those of least resistance first; one of each set of views that hide
        the patch in turn.
        """
        sets = torch.unique(self.shares[0] == 1, dim=0, return_inverse=True)[1]
        found = []
        for resistance, open_, order in zip(self.resistance, self.open, shuffled, strict=True):
            order = order[resistance[order].argsort(stable=True)]
            order = order[open_[order]]
            found.append(OpenPlacements.in_order(order, sets[order]))
        return found

    def several(self, image: int, chance: torch.Generator) -> Iterator[Site]:
        """Random placements of all patches, hidden together by one of the views least steady; of each few dozen, those
        of least resistance first.
        """
        lead = self.lead[image]
        order = lead.argsort()[: max(1, int((lead <= 0).sum()))]
        view = order[torch.arange(_DRAWN, device=lead.device) % len(order)]
        while True:
            each = []
            for share in self.shares:
                drawn = torch.rand(_DRAWN, len(share), generator=chance).to(lead.device)
                each.append(drawn.masked_fill(share.T[view] < 1, -1).argmax(dim=1))
            placement = torch.stack(each, dim=1)
            resistance = (self._share(placement).mean(dim=1) * lead.clamp(min=0)).amax(dim=1)
            for some in placement[resistance.argsort(stable=True)].tolist():
                yield tuple(some), -1

    @property
    def climb_cost(self) -> int:
        return self.each * (2 * self._asked(_NEAR) + self._asked(_FAR))

    def _asked(self, views: int) -> int:
        return min(views * self.attacked.threat.count, len(self.masks.views))

    def view(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        rival: Int[Tensor, " P"] | None = None,
        objective: Objective = "votes",
    ) -> View:
        """A few of PatchCleanser's views of the attacked images, whatever the objective."""
        y = self.attacked.y[image]
        each, pair = self._share(placement), self.masks.pair.to(y.device)
        share, lead, hides = each.mean(dim=1), self.lead[image], (each == 1).all(dim=1)
        steady = torch.where(self.complete[image], lead, lead.clamp(max=0)).masked_fill(~hides, -torch.inf)
        holding, near = (share * lead.clamp(min=0)).masked_fill(hides, 0).topk(self._asked(_NEAR), dim=1)
        far = _spread(share, self._asked(_FAR))
        first, second = pair[near, near], pair[near, self.weakest[image].gather(1, near)]
        held, shown = holding > 0, ~hides.gather(1, far)
        shown[:, 0] = True  # where no view shows any of the patch there is nothing to climb, but a step costs something
        valid = torch.cat([held, held & (second != first), shown], dim=1)
        return PatchCleanserView(
            y=y,
            rival=torch.full_like(y, -1) if rival is None else rival,
            model=self.model,
            union=torch.cat([first, second, pair[far, far]], dim=1),
            valid=valid,
            steady=steady.amax(dim=1),
            near=near.shape[1],
            each=self.each,
        )


def _spread(share: Float[Tensor, "P V"], most: int) -> Int[Tensor, "P M"]:
    """So many of the views that hide least of the patch, spread evenly among those that hide nothing of it."""
    order = share.argsort(dim=1, stable=True)
    free = (share == 0).sum(dim=1, keepdim=True).clamp(min=most)
    step = torch.arange(most, device=share.device) * free // most
    return order.gather(1, step)


@dataclass(frozen=True, kw_only=True)
class PatchCleanserView(View):
    """Attacked images of which a few views are asked: `near` that hide part of the patch, and some that show it all.

    A view is turned when it names the rival, or is shaken by its second view: the less of both leads of y says how far
    that is. The objective is log Σ exp of these over the views asked, with what the view `steady` holds that hides the
    patch, less its value where all are 0. Below zero, and where that one is not steady, `predict` is worth asking: on
    MNIST it was changed in 33 of 48 such cases, and in 21 of 357 others.

    Attributes:
        rival: -1 for the class strongest in sum where the patch shows, at each step.
        union: Int[P,N], first `near` views, then each of them with its second view, then the others. valid: Bool[P,N].
        steady: Float[P], the most by which a view leads that hides the patch, whatever it shows; -inf without one.
        each: evaluations of one union.
    """

    model: MaskedNetwork
    union: Int[Tensor, "P N"]
    valid: Bool[Tensor, "P N"]
    steady: Float[Tensor, " P"]
    near: int
    each: int

    @property
    def cost(self) -> Int[Tensor, " P"]:
        return self.valid.sum(dim=1) * self.each

    def towards(self, target: int | Int[Tensor, " P"]) -> PatchCleanserView:
        """Its views are about y: the target is its rival."""
        return replace(self, rival=torch.zeros_like(self.y) + target)

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


@surface_of.register
def _(classifier: PatchCleanser, attacked: Attacked, pruned: bool) -> Surface:
    return PatchCleanserSurface(classifier, attacked) if pruned else Surface(classifier, attacked)

"""Several attacks as one: an image is broken if any of them breaks it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import PatchAttack, Proposal, check_call, judge, judge_of, judged_patches, require, visible
from attacks.criterion import Criterion, as_criterion, asked
from attacks.gradient import NotDifferentiable, check_differentiable, climbs
from attacks.image_by_image import image_by_image
from attacks.occlusion import Control
from attacks.propose import propose
from attacks.sparse_rs import SparseRS
from attacks.surfaces import whole_view
from attacks.surfaces.views import aimed
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import as_patches


@dataclass(frozen=True)
class Ensemble:
    """The worst case of each image over its members, run in their order (by cost), each on the images not yet broken.

    Without budgets at least as strong as every member alone: each is given the same generator state, from which it
    draws for each image on its own. Within a budget the same, up to the climbs under way when it ends. A member that
    cannot search a threat is left out for it. `budget` (evaluations an image) is shared among the members by `shares`,
    all alike if not given; what one leaves is not passed on. Evaluations of all members add up; `Proposal.by` names the
    one whose patch is proposed. Placements and patches of controls among the members are not counted.

    Where the model has no gradient in the image, members that climb it are left out from there on, and the rest shares
    what is left of the budget; where that leaves no attack, Sparse-RS is run, which reads scores alone. An error that
    says something else, of a model that has a gradient in the first image, raises `InvalidInput`.
    """

    members: tuple[PatchAttack, ...]
    label: str
    budget: int | None = None
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        require(len(self.members) >= 1, "members", "empty", "at least one attack")
        require(self.budget is None or self.budget >= 1, "budget", self.budget, "at least 1, or None for no limit")
        if self.shares:
            require(len(self.shares) == len(self.members), "shares", self.shares, "one number for each member")
            require(all(share > 0 for share in self.shares), "shares", self.shares, "positive")

    @property
    def name(self) -> str:
        return self.label

    @property
    def judged(self) -> int:
        """The number of proposals of an image that the judge is asked about: one of each member."""
        return sum(getattr(member, "judged", 1) for member in self.members)

    @property
    def touched_only(self) -> bool:
        return any(member.touched_only for member in self.members)

    def unpruned(self, budget: int | None) -> Ensemble:
        return replace(self, members=tuple(member.unpruned(None) for member in self.members), budget=budget)

    def check(self, threat: Patches) -> None:
        self._able(threat)

    def _able(self, threat: Patches) -> list[tuple[PatchAttack, float]]:
        """The members that can search this threat, and their shares of the budget."""
        able, refusals = [], []
        for member, share in zip(self.members, self.shares or (1.0,) * len(self.members), strict=True):
            try:
                member.check(threat)
                able.append((member, share))
            except InvalidInput as refusal:
                refusals.append(refusal)
        if not able:
            raise refusals[0]
        return able

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches | str,
        *,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        generator = generator or torch.Generator().manual_seed(0)
        threat = as_patches(threat, x.shape[2:])
        able = self._able(threat)
        if threat.varies:
            return image_by_image(self, model, x, y, threat, generator)
        classifier, criterion = as_classifier(model), as_criterion(y)
        check_call(classifier, x, criterion.y, threat)  # each member sees only a part
        criterion = criterion.to(x.device)
        state, last = generator.get_state(), generator
        out, alone = BestProposals(classifier, x, criterion, threat), is_control(self)
        waiting, total, room, given = deque(able), sum(share for _, share in able), self.budget, 0
        tested = False

        def aims(rows: Tensor) -> Tensor | Criterion:
            """In the caller's own form: a member may know labels alone."""
            return criterion.of(rows) if isinstance(y, Criterion) else y[rows]

        while waiting and len(out.left):
            member, share = waiting.popleft()
            own: Any = member
            if room is not None and hasattr(member, "budget"):
                own = replace(own, budget=max(1, int(room * share / total)))
            last = torch.Generator().set_state(state)
            try:
                found = propose(own, classifier, x[out.left], aims(out.left), threat, generator=last)
            except NotDifferentiable as error:
                self._check_has_none(classifier, x, member, error)
                spent = _spent(error, out.left)
                out.evaluations[out.left] += spent
                waiting = deque(one for one in waiting if not climbs(one[0]))
                if not tested and all(is_control(other) for other, _ in waiting):
                    waiting.append((self._instead(), 1.0))
                total = sum(share for _, share in waiting)
                room = None if self.budget is None else max(1, self.budget - given - int(spent.max()))
                continue
            given += getattr(own, "budget", None) or 0
            control = is_control(member)
            tested = tested or not control
            out.add(member.name, found, counted=alone or not control, nested=counts_itself(member))
        generator.set_state(last.get_state())
        return out.proposal()

    def _check_has_none(
        self, model: torch.nn.Module, x: Float[Tensor, "B C H W"], member: PatchAttack, error: NotDifferentiable
    ) -> None:
        """Raise `InvalidInput` where the error is not for want of any gradient."""
        if error.cut_off:
            return
        try:
            check_differentiable(model, x)
        except NotDifferentiable:
            return
        cause = error.__cause__ or error
        raise InvalidInput(
            f"{member.name} of {self.name} failed as it climbed ({(str(cause).splitlines() or [''])[0]}), though the "
            "model has a gradient in the first image: mend what failed, give it less at once (batch), or use sparse-rs"
        ) from error

    def _instead(self) -> PatchAttack:
        """The attack that is run where all members climb gradients and there are none."""
        return SparseRS(touched_only=self.touched_only)

    def left_out(self) -> str | None:
        """Say what is run on a model that has no gradient in the image; None where no member needs one."""
        climbing = [member.name for member in self.members if climbs(member)]
        if not climbing:
            return None
        rest = [member for member in self.members if not climbs(member)]
        others = [member.name for member in rest] + ([self._instead().name] if all(map(is_control, rest)) else [])
        return f"{self.name} leaves out {', '.join(climbing)} and runs {', '.join(others)} alone"


class BestProposals:
    """Keeps, of the proposals added for B images, the first that broke each one, else the nearest to it.

    A patch that shows (`attacks.base.visible`) comes before anything else; what leaves the threat comes before the
    clean image, so that the judge sees it. `left`: the images, by number, that none has broken. `evaluations` [B] are
    those of all attacks.
    """

    def __init__(
        self, classifier: Classifier, x: Float[Tensor, "B C H W"], criterion: Criterion, threat: Patches
    ) -> None:
        self._classifier, self._x, self._criterion, self._threat = classifier, x, criterion, threat
        self.left = torch.arange(len(x), device=x.device)
        self.evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._x_adv = x.clone()
        self._corners = torch.zeros(len(x), threat.count, 2, dtype=torch.long, device=x.device)
        self._visited = torch.zeros(len(x), device=x.device)
        self._value = torch.full((len(x),), torch.inf, device=x.device)
        self._rank = torch.full((len(x),), -1, device=x.device)  # 0: the clean image, 1: outside the threat, 2: a patch
        self._seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._by = [""] * len(x)
        self._patches: list[frozenset[str]] = [frozenset()] * len(x)

    def add(self, name: str, found: Proposal, counted: bool, nested: bool) -> None:
        """Add what an attack proposes for the images left. `counted`: what it tried tests the images; a control's does
        not. `nested`: it says itself how many patches its judge was asked about, as only an ensemble is believed.
        """
        rows = self.left
        x, criterion = self._x[rows], self._criterion.of(rows)
        self.evaluations[rows] += found.evaluations
        outcome = judge(self._classifier, x, criterion, self._threat, found)
        if found.broken is not None:
            self._seen[rows] |= found.broken.to(x.device)
        valid = outcome.contained & outcome.in_range
        if counted:
            self._visited[rows] = torch.maximum(self._visited[rows], found.visited.to(self._visited.dtype))
            judged = found.patches if nested and found.patches is not None else judged_patches(x, found, outcome)
            tried = ((found.visited > 0) & (found.evaluations > 0)).tolist()
            for i, own, searched in zip(rows.tolist(), judged, tried, strict=True):
                self._patches[i] |= own if searched else frozenset()
        shown = torch.where(valid[:, None, None, None], found.x_adv, x)
        with torch.no_grad():
            view = whole_view(self._classifier, x, criterion.y, rank=criterion.rank)
            reached = aimed(view, criterion.rival)(shown)[0]
        if judge_of(self._classifier) is not self._classifier:
            # Which says nothing of a proof: the classifier's own answer comes next.
            reached = reached.masked_fill(asked(self._classifier, criterion, shown)[0], -torch.inf)
        rank = torch.where(valid, 2 * visible(x, found.x_adv).long(), 1)
        reached = torch.where(rank == 2, reached, torch.inf)
        nearer = (rank == self._rank[rows]) & (reached < self._value[rows])
        better = outcome.broken | (rank > self._rank[rows]) | nearer
        chosen = rows[better]
        self._x_adv[chosen], self._corners[chosen] = found.x_adv[better], found.corners[better].long()
        self._value[chosen], self._rank[chosen] = reached[better], rank[better]
        for i in chosen.tolist():
            self._by[i] = name
        self.left = rows[~outcome.broken]

    def proposal(self) -> Proposal:
        """The best of each image, by whom, and how many patches were judged on the way."""
        found = (self._x_adv, self._corners, self.evaluations, self._visited)
        return Proposal(*found, by=self._by, patches=self._patches, broken=self._seen)


def counts_itself(attack: PatchAttack) -> bool:
    """Tell whether an ensemble counted the patches that the proposals name, or a subclass that runs like one."""
    return isinstance(attack, Ensemble) and type(attack).__call__ is Ensemble.__call__


def is_control(attack: PatchAttack) -> bool:
    """Tell whether the attack is a control, or several as one, which says nothing of what a search would find."""
    return isinstance(attack, Control) or (isinstance(attack, Ensemble) and all(map(is_control, attack.members)))


def _spent(error: NotDifferentiable, images: Tensor) -> Tensor:
    return torch.zeros_like(images) if error.evaluations is None else error.evaluations

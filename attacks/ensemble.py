"""Several attacks as one: an image stands only if it stands under each of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import PatchAttack, Proposal, judge
from attacks.checks import check_call, require
from attacks.victim import WholeVictim
from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat


@dataclass(frozen=True)
class Ensemble:
    """The worst case of each image over its members, run in their order (by cost), each on the images still standing.

    Without budgets at least as strong as every member alone: each is given the same generator state and, drawing chance
    for each image on its own, tries on an image what it would try without the others. Within a budget the same, up to
    the climbs that are under way when it ends. A member that cannot search a threat is left out for it. `budget`
    (evaluations an image) is shared among the members by `shares`, all alike if not given; what one leaves is not
    passed on. The evaluations of all members add up; `Proposal.by` names the one that went furthest.
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
        """How many proposals of an image the judge is asked about: each member's, before the best is picked."""
        return sum(getattr(member, "judged", 1) for member in self.members)

    @property
    def touched_only(self) -> bool:
        return any(member.touched_only for member in self.members)

    def unpruned(self, budget: int | None) -> Ensemble:
        return replace(self, members=tuple(member.unpruned(None) for member in self.members), budget=budget)

    def check(self, threat: PatchThreat) -> None:
        self._able(threat)

    def _able(self, threat: PatchThreat) -> list[tuple[PatchAttack, float]]:
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
        y: Int[Tensor, " B"],
        threat: PatchThreat,
        *,
        generator: torch.Generator,
    ) -> Proposal:
        able = self._able(threat)
        check_call(model, x, y, threat)  # each member sees only what of it stands
        state, total = generator.get_state(), sum(share for _, share in able)
        standing = torch.arange(len(x), device=x.device)
        out: Proposal | None = None
        own = generator
        value = torch.full((len(x),), torch.inf, device=x.device)
        known = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for member, share in able:
            if self.budget is not None and hasattr(member, "budget"):
                member = replace(member, budget=max(1, int(self.budget * share / total)))  # type: ignore[type-var]
            own = torch.Generator().set_state(state)
            found = member(model, x[standing], y[standing], threat, generator=own)
            out = _blank(x, threat, found) if out is None else out
            out.evaluations[standing] += found.evaluations
            out.visited[standing] = torch.maximum(out.visited[standing], found.visited)
            outcome = judge(model, x[standing], y[standing], threat, found)
            broken, valid = outcome.broken, outcome.contained & outcome.in_range
            with torch.no_grad():
                reached = WholeVictim.of(model, x[standing], y[standing])(found.x_adv)[0]
            # What leaves the threat is shown only where nothing else is: the judge is to see that, not the clean image.
            better = broken | (valid & (reached < value[standing])) | (~valid & ~known[standing])
            known[standing] = True
            rows = standing[better]
            out.x_adv[rows], out.corners[rows], value[rows] = (
                found.x_adv[better],
                found.corners[better],
                torch.where(valid, reached, torch.inf)[better],
            )
            assert out.by is not None
            for i in rows.tolist():
                out.by[i] = member.name
            standing = standing[~broken]
            if len(standing) == 0:
                break
        generator.set_state(own.get_state())
        assert out is not None
        return out


def _blank(x: Tensor, threat: PatchThreat, like: Proposal) -> Proposal:
    corners = torch.zeros(len(x), threat.count, 2, dtype=like.corners.dtype, device=x.device)
    nothing = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return Proposal(x.clone(), corners, nothing, torch.zeros(len(x), device=x.device), [""] * len(x))

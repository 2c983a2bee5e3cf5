"""Projected gradient descent on the content of a patch, at random placements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.base import Proposal
from attacks.victim import TouchedVictim, Victim, WholeVictim
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import PatchThreat


@dataclass(frozen=True)
class Climb:
    """What `climb` found for each of P attacked images."""

    x_adv: Float[Tensor, "P C H W"]
    broken: Bool[Tensor, " P"]
    gap: Float[Tensor, " P"]
    evaluations: Int[Tensor, " P"]


def climb(
    victim: Victim,
    x: Float[Tensor, "P C H W"],
    footprint: Bool[Tensor, "P H W"],
    y: Int[Tensor, " P"],
    group: Int[Tensor, " P"],
    *,
    steps: int,
    step: float,
    generator: torch.Generator,
) -> Climb:
    """Sign-gradient descent of the victim's objective inside the footprints, from uniformly random content.

    Every iterate, the first and the last too, is judged by the votes it gets; a row stops at the first success, and so
    do the other rows of its `group` (the same image). Steps shrink from `step` to a tenth of it along a cosine. Returns
    the successful iterate, or the one with the least objective. Costs 2·steps + 1 forward passes at the most.
    """
    inside = footprint[:, None]
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float32).to(x)
    adv = torch.where(inside, noise, x)
    out = Climb(
        adv.clone(),
        torch.zeros_like(y, dtype=torch.bool),
        torch.full((len(x),), torch.inf, device=x.device),
        torch.zeros_like(y),
    )
    rows = torch.arange(len(x), device=x.device)
    for t in range(steps + 1):
        last = t == steps
        with torch.set_grad_enabled(not last):
            adv.requires_grad_(not last)
            value, prediction = victim(adv)
            gradient = None if last else torch.autograd.grad(value.sum(), adv)[0]
        adv = adv.detach()
        value = value.detach()
        out.evaluations[rows] += victim.cost * (1 if last else 2)
        hit = prediction != y[rows]
        better = hit | (value < out.gap[rows])
        out.x_adv[rows[better]], out.gap[rows[better]], out.broken[rows[hit]] = adv[better], value[better], True
        if gradient is None:
            break
        size = step * (0.55 + 0.45 * cos(pi * t / max(1, steps - 1)))
        adv = torch.where(inside, (adv - size * gradient.sign()).clamp(0, 1), adv)
        if hit.any():
            going = ~torch.isin(group[rows], group[rows[hit]])
            rows, adv, inside, victim = rows[going], adv[going], inside[going], victim.keep(going)
            if len(rows) == 0:
                break
    return out


@dataclass(frozen=True)
class PatchPGD:
    """Patch PGD: each restart picks a random placement and random content and descends the soft-vote gap by gradient.

    The scheme of Chiang et al. (2020) and Levine & Feizi (2020): `restarts` placements of `steps` steps each, at most
    restarts · (2·steps + 1) · n evaluations an image, n the ablations scored: those touched by the patch for a
    `SmoothedClassifier`, all of them after `unpruned`. Placements are drawn without looking at the certificate.
    `budget` (evaluations an image, None: no limit) ends the search of an image. Memory follows `batch`.
    """

    steps: int = 30
    restarts: int = 20
    step: float = 0.25
    budget: int | None = None
    touched_only: bool = True
    batch: int = 512

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"attack {name} is {getattr(self, name)}; it must be at least 1")
        if not self.step > 0 or (self.budget is not None and self.budget < 1):
            raise InvalidInput(f"attack step and budget are {self.step}, {self.budget}; both must be positive")

    @property
    def name(self) -> str:
        return f"pgd-{self.restarts}"

    def check(self, threat: PatchThreat) -> None:
        """It searches every threat."""

    def unpruned(self, budget: int | None) -> PatchPGD:
        return replace(self, touched_only=False, budget=budget)

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        threat: PatchThreat,
        *,
        generator: torch.Generator,
    ) -> Proposal:
        sites = len(threat.placements(*x.shape[2:]))
        shape = (self.restarts, len(x), threat.count)
        placement = torch.randint(sites, shape, generator=generator).to(x.device)
        search = Search(model, x, y, threat, touched_only=self.touched_only)
        image = torch.arange(len(x), device=x.device)
        while len(placement) and bool((alive := search.going(self.budget)).any()):
            share = search.share(int(alive.sum()), self.batch, self.steps, self.budget)
            some, placement = placement[:share], placement[share:]
            search.run(
                image[alive].repeat(len(some)),
                some[:, alive].flatten(0, 1),
                self.batch,
                steps=self.steps,
                step=self.step,
                generator=generator,
            )
        return search.proposal()


class Search:
    """The best patch found so far for each of B images, over any number of climbs at chosen placements."""

    def __init__(
        self, model: torch.nn.Module, x: Tensor, y: Tensor, threat: PatchThreat, *, touched_only: bool
    ) -> None:
        self.model, self.x, self.y, self.threat = model, x, y, threat
        self.placements = threat.placements(*x.shape[2:]).to(x.device)
        self._touched, self._cast = None, None
        self.num_ablations = model.ablation.count(*x.shape[2:]) if isinstance(model, SmoothedClassifier) else 1
        self._cost = self.num_ablations
        self.evaluations = torch.zeros_like(y)
        if touched_only and isinstance(model, SmoothedClassifier):
            self._touched = model.ablation.touched(threat, *x.shape[2:])
            self._cast = model.votes(x).cast
            self.evaluations += self._cast.shape[1]
            self._cost = model.ablation.affected(threat, *x.shape[2:])
        self.broken = torch.zeros_like(y, dtype=torch.bool)
        self._best, self._gap = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
        self._corners = self.placements[:1].expand(len(x), threat.count, 2).clone()
        self._tried: dict[int, set[int]] = {i: set() for i in range(len(x))}

    def going(self, budget: int | None) -> Bool[Tensor, " B"]:
        """The images neither broken nor over their budget."""
        return ~self.broken if budget is None else ~self.broken & (self.evaluations < budget)

    def share(self, images: int, batch: int, steps: int, budget: int | None) -> int:
        """How many climbs of each of `images` make up one round: within the batch, and within what is left of the
        budget to every image still going; at least one, so that an image spends at most one climb too many.
        """
        affordable = batch
        if budget is not None:
            affordable = (budget - int(self.evaluations[self.going(budget)].max())) // (self._cost * (2 * steps + 1))
        return max(1, min(batch // max(1, images), affordable))

    def run(
        self,
        image: Int[Tensor, " P"],
        placement: Int[Tensor, "P count"],
        batch: int,
        *,
        steps: int,
        step: float,
        generator: torch.Generator,
    ) -> Float[Tensor, " P"]:
        """Climb once for each pair of an image and placements, `batch` pairs at a time; returns the objectives."""
        gaps = torch.full((len(image),), torch.inf, device=image.device)
        for pairs in torch.arange(len(image), device=image.device).split(batch):
            pairs = pairs[~self.broken[image[pairs]]]
            if len(pairs) == 0:
                continue
            i, where = image[pairs], placement[pairs]
            x, y = self.x[i], self.y[i]
            if self._touched is None or self._cast is None:
                victim: Victim = WholeVictim.of(self.model, x, y)
            else:
                assert isinstance(self.model, SmoothedClassifier)
                victim = TouchedVictim.of(self.model, y, self._cast[i], self._touched, where)
            corners = self.placements[where]
            found = climb(
                victim,
                x,
                self.threat.footprint(corners, *x.shape[2:]),
                y,
                i,
                steps=steps,
                step=step,
                generator=generator,
            )
            self.evaluations.index_add_(0, i, found.evaluations)
            gaps[pairs] = found.gap
            self._keep_best(i, corners, found)
            for image_number, sites in zip(i.tolist(), where.tolist(), strict=True):
                self._tried[image_number].update(sites)
        return gaps

    def _keep_best(self, image: Tensor, corners: Tensor, found: Climb) -> None:
        rank = torch.where(found.broken, -torch.inf, found.gap)
        order = rank.argsort(descending=True, stable=True)  # written last, the best stays
        for row in order.tolist():
            i = int(image[row])
            if rank[row] < self._gap[i]:
                self._best[i], self._corners[i], self._gap[i] = found.x_adv[row], corners[row], rank[row]
                self.broken[i] |= found.broken[row]

    def proposal(self, open_placements: Int[Tensor, " B"] | None = None) -> Proposal:
        """What was found; `visited` counts distinct single placements among those open (all, where not given)."""
        total = torch.full_like(self.y, len(self.placements)) if open_placements is None else open_placements
        tried = torch.tensor([len(self._tried[i]) for i in range(len(self.y))], device=self.y.device)
        visited = (tried / total.clamp(min=1)).clamp(max=1).to(torch.float32)
        return Proposal(self._best, self._corners, self.evaluations, visited)

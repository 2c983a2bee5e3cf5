"""Every placement of the patch, the most promising first."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import Proposal
from attacks.pgd import Search
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import PatchThreat


@dataclass(frozen=True)
class ExhaustivePGD:
    """PGD at every placement, in the order of the certificate's margin; then again where it came closest.

    For a `SmoothedClassifier`, placements that the exact certificate closes are skipped and only touched ablations are
    scored. `unpruned` does neither: all placements in random order, all ablations scored at every step. The first
    sweep takes `steps` steps at every open placement. Each of `rounds` further sweeps takes twice as many steps as the
    one before from new random content, at the `keep` share of placements with the least objective.

    `budget` (evaluations an image, None: no limit) ends the search of an image; `Proposal.visited` says how much of it
    was done. Memory follows `batch`, the pairs of an image and a placement climbed at once.
    """

    steps: int = 10
    rounds: int = 2
    keep: float = 0.25
    step: float = 0.5
    budget: int | None = None
    touched_only: bool = True
    batch: int = 512

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("rounds", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise InvalidInput(f"attack {name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.keep <= 1:
            raise InvalidInput(f"attack keep is {self.keep}; it must lie in (0, 1]")
        if not self.step > 0 or (self.budget is not None and self.budget < 1):
            raise InvalidInput(f"attack step and budget are {self.step}, {self.budget}; both must be positive")

    @property
    def name(self) -> str:
        return "exhaustive"

    def check(self, threat: PatchThreat) -> None:
        if threat.count != 1:
            raise InvalidInput(
                f"patch is {threat}; the exhaustive search visits single placements, use pgd for several"
            )

    def unpruned(self, budget: int | None) -> ExhaustivePGD:
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
        self.check(threat)
        search = Search(model, x, y, threat, touched_only=self.touched_only)
        queues = self._open(search, model, x, threat, generator)
        opened = torch.tensor([len(queue) for queue in queues], device=x.device)
        steps = self.steps
        for sweep in range(self.rounds + 1):
            found = self._sweep(search, queues, steps, generator)
            if sweep == self.rounds or bool(search.broken.all()):
                break
            # Placements that the budget left unvisited have gap inf and stay behind those that came close.
            queues = [
                queue[gaps.argsort(stable=True)[: max(1, int(self.keep * len(queue)))]]
                for queue, gaps in zip(queues, found, strict=True)
            ]
            steps *= 2
        return search.proposal(opened)

    def _open(
        self, search: Search, model: torch.nn.Module, x: Tensor, threat: PatchThreat, generator: torch.Generator
    ) -> list[Tensor]:
        """For each image the placements to visit, in order."""
        shuffled = torch.randperm(len(threat.placements(*x.shape[2:])), generator=generator).to(x.device)
        if not (self.touched_only and isinstance(model, SmoothedClassifier)):
            return [shuffled] * len(x)
        search.evaluations += search.num_ablations  # the certificate scores them all once more
        margins = model.certify(x, threat).placement_margin
        if margins is None:  # a certifier that says nothing of placements closes none
            return [shuffled] * len(x)
        queues = []
        for margin in margins[:, shuffled]:
            order = margin.argsort(stable=True)
            queues.append(shuffled[order[margin[order] < 0]])
        return queues

    def _sweep(
        self, search: Search, queues: list[Int[Tensor, "_"]], steps: int, generator: torch.Generator
    ) -> list[Float[Tensor, "_"]]:
        """One climb at every placement queued, a few of each image still standing at a time; the objectives."""
        gaps = [torch.full((len(queue),), torch.inf, device=queue.device) for queue in queues]
        done = [0] * len(queues)
        while True:
            going = search.going(self.budget).tolist()
            active = [i for i, queue in enumerate(queues) if going[i] and done[i] < len(queue)]
            if not active:
                return gaps
            share = search.share(len(active), self.batch, steps, self.budget)
            picks = {i: range(done[i], min(done[i] + share, len(queues[i]))) for i in active}
            image = torch.tensor([i for i in active for _ in picks[i]], device=search.x.device)
            placement = torch.cat([queues[i][picks[i].start : picks[i].stop] for i in active])
            result = search.run(image, placement[:, None], self.batch, steps=steps, step=self.step, generator=generator)
            for i in active:
                gaps[i][picks[i].start : picks[i].stop] = result[image == i]
                done[i] = picks[i].stop

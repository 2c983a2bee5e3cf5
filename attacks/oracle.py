"""The true worst case on tiny images: every content of the patch, every placement."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.base import Proposal, check_call, visible
from attacks.criterion import Criterion, as_criterion, asked
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

_LIMIT = 2_000_000


@dataclass(frozen=True)
class Oracle:
    """Tries every patch whose values come from `levels`, at every placement: no attack within those values is stronger.

    levels^(C·h·w·count) contents times all placements; refused above two million images.
    """

    levels: tuple[float, ...] = (0.0, 1.0)
    batch: int = 4096
    touched_only: bool = False

    @property
    def name(self) -> str:
        return "oracle"

    def check(self, threat: Patches) -> None:
        """Refuses nothing: what is too much to enumerate depends on the image too."""

    def unpruned(self, budget: int | None) -> Oracle:
        return self

    def __call__(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"] | Criterion,
        threat: Patches,
        *,
        generator: torch.Generator,
    ) -> Proposal:
        classifier, criterion = as_classifier(model), as_criterion(y)
        check_call(classifier, x, criterion.y, threat)
        criterion = criterion.to(x.device)
        placements = threat.placements(*x.shape[2:]).to(x.device)
        sites = list(combinations_with_replacement(range(len(placements)), threat.count))
        pixels = x.shape[1] * threat.height * threat.width * threat.count
        total = len(sites) * len(self.levels) ** pixels
        if total > _LIMIT:
            raise InvalidInput(
                f"the oracle would try {total:,} patches an image; take an image or patch so small that "
                f"there are at most {_LIMIT:,}"
            )
        contents = torch.tensor(list(product(self.levels, repeat=pixels)), dtype=x.dtype, device=x.device)
        contents = contents.unflatten(1, (threat.count, x.shape[1], threat.height, threat.width))
        x_adv, corners = x.clone(), placements[:1].expand(len(x), threat.count, 2).clone()
        spent = torch.zeros_like(criterion.y)
        _, each = classifier.cost(x.shape[2], x.shape[3])
        for i in range(len(x)):
            held = False
            for site in sites:
                where = placements[list(site)]
                worlds = x[i].expand(len(contents), -1, -1, -1).clone()
                for patch, (row, column) in enumerate(where.tolist()):
                    worlds[:, :, row : row + threat.height, column : column + threat.width] = contents[:, patch]
                if not held:  # what is shown where no patch breaks it: the first one that shows
                    seen = visible(x[i].expand_as(worlds), worlds).nonzero()[:, 0].tolist()
                    for first in seen[:1]:
                        held, x_adv[i], corners[i] = True, worlds[first], where
                same = torch.full((len(worlds),), i, device=x.device)
                aims = [criterion.of(some) for some in same.split(self.batch)]
                parts = zip(aims, worlds.split(self.batch), strict=True)
                broken = torch.cat([asked(classifier, aim, some)[0] for aim, some in parts])
                spent[i] += len(worlds) * each
                hits = broken.nonzero()
                if len(hits):
                    x_adv[i], corners[i] = worlds[hits[0, 0]], where
                    break
        return Proposal(x_adv, corners, spent, torch.ones(len(x), device=x.device))

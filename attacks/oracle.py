"""The true worst case on tiny images: every content of the patch, every placement."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch

from attacks.attack import Attack
from attacks.base import visible
from attacks.criterion import asked
from attacks.search import Search
from robustpatch.errors import InvalidInput

_LIMIT = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Oracle(Attack):
    """Tries every patch whose values come from `levels`, at every placement: no attack within those values is stronger.

    levels^(C·h·w·count) contents times all placements; refused above two million images. An image that no patch breaks
    gets the first one that shows.
    """

    levels: tuple[float, ...] = (0.0, 1.0)
    touched_only: bool = False
    batch: int = 4096

    @property
    def name(self) -> str:
        return "oracle"

    def unpruned(self, budget: int | None) -> Oracle:
        """The same, whatever the budget: a part of an enumeration is none."""
        return self

    @torch.no_grad()
    def _run(self, search: Search) -> None:
        shape = (search.threat.count, search.x.shape[1], *search.patch_size)
        if search.alike:
            sites = list(combinations_with_replacement(range(len(search.families[0])), search.threat.count))
        else:
            sites = list(product(*(range(len(family)) for family in search.families)))
        total = len(sites) * len(self.levels) ** torch.Size(shape).numel()
        if total > _LIMIT:
            raise InvalidInput(
                f"the oracle would try {total:,} patches an image; take an image or patch so small that "
                f"there are at most {_LIMIT:,}"
            )
        contents = torch.tensor(list(product(self.levels, repeat=torch.Size(shape).numel()))).to(search.x)
        for i, site in product(search.going().nonzero()[:, 0].tolist(), sites):
            for some in contents.unflatten(1, shape).split(self.batch):
                if not search.going()[i]:
                    break
                image = torch.full((len(some),), i, device=search.x.device)
                placement = image.new_tensor(site).expand(len(some), -1)
                x_adv = search.paste(image, placement, some)
                broken, _, spent = asked(search.classifier, search.criterion.of(image), x_adv)
                search.spend(image, spent)
                search.visit([i], [list(site)])
                shows = visible(search.x[image], x_adv) & ~search.held[image]
                first = (broken if broken.any() else shows).nonzero()[:1, 0]
                value = torch.full_like(search.gap[image[first]], torch.inf)
                search.offer(image[first], search.anchors(placement[first]), x_adv[first], value, broken[first])

"""Random search for the content and the place of a patch, from scores alone."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from attacks.attack import Attack
from attacks.base import require
from attacks.search import Search
from robustpatch.threats.base import Placements

_HALVINGS = (10, 50, 200, 500, 1000, 4000, 8000)  # in a run of 10,000 queries: when the square's area is halved
_DRAWN = 64  # queries whose chance is drawn at once


@dataclass(frozen=True, kw_only=True)
class SparseRS(Attack):
    """Patch Sparse-RS: random changes of a patch of zeros and ones, each kept unless it raises the soft-vote gap.

    Black box: it reads scores, never a gradient. It begins at a random placement with vertical stripes of random
    colours from {0, 1}^C. A query paints a random square inside the patch in one such colour; the square covers the
    share `alpha` of the patch at first, halved seven times in the course of `queries`. Every `move_every`-th query
    moves a patch instead, to another placement within a distance that shrinks from three quarters of the image to one
    pixel. Raw votes have plateaus, so the margin descended is that of the soft votes (of a classifier that is not
    smoothed, of its outputs); success is judged by the votes.

    At most `queries` · n evaluations an image, n the ablations scored. All images ask their query t together.

    Croce et al. 2022, section 5, after the released schedule; theirs never begins at the last row and column, moves to
    locations clamped to the border, and half of its squares of a single channel change nothing.
    """

    queries: int = 10_000
    alpha: float = 0.4
    move_every: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.queries >= 1, "queries", self.queries, "at least 1")
        require(0 < self.alpha <= 1, "alpha", self.alpha, "in (0, 1]")
        require(self.move_every >= 2, "move_every", self.move_every, "at least 2")

    @property
    def name(self) -> str:
        return "sparse-rs"

    @torch.no_grad()
    def _run(self, search: Search) -> None:
        image = search.going().nonzero()[:, 0]
        sites, patch = _begin(search, image.tolist())
        value = search.try_patches(image, sites, patch, batch=self.batch)
        chance = sites.new_zeros(len(image), 0, 0)
        for t in range(1, self.queries):
            if (t - 1) % _DRAWN == 0:
                chance = _draw(search, image.tolist())
            left = search.going()[image]
            if not left.all():
                image, sites, patch, value, chance = (rows[left] for rows in (image, sites, patch, value, chance))
            if len(image) == 0:
                return
            u = chance[:, (t - 1) % _DRAWN]
            new_sites, new_patch = sites, patch
            if t % self.move_every == 0 and max(map(len, search.families)) > 1:
                new_sites = self._moved(search, sites, t, u)
            else:
                new_patch = self._painted(search, patch, t, u)
            new_value = search.try_patches(image, new_sites, new_patch, batch=self.batch)
            kept = new_value <= value
            sites = torch.where(kept[:, None], new_sites, sites)
            patch = torch.where(kept[:, None, None, None, None], new_patch, patch)
            value = torch.where(kept, new_value, value)

    def _painted(
        self, search: Search, patch: Float[Tensor, "P count C h w"], t: int, u: Int[Tensor, "P D"]
    ) -> Float[Tensor, "P count C h w"]:
        """One square of each row's patches in a random colour; in the opposite one where that changes nothing."""
        count, _, height, width = patch.shape[1:]
        share = self.alpha / 2 ** bisect_left(_HALVINGS, t * 10_000 / self.queries)
        which = u[:, 0] % count
        inside = (torch.arange(count, device=patch.device) == which[:, None])[:, :, None, None]
        boxes = torch.tensor([family.box for family in search.families], device=patch.device)[which]
        for axis, most in ((2, height), (3, width)):
            length = boxes[:, axis - 2]
            side = (share**0.5 * length.double()).long().clamp(min=1)
            offset = torch.arange(most, device=patch.device) - (u[:, axis - 1] % (length - side + 1))[:, None]
            along = ((offset >= 0) & (offset < side[:, None]))[:, None]
            inside = inside & (along[..., :, None] if axis == 2 else along[..., None, :])
        inside = inside[:, :, None]
        colour = (u[:, 3:] % 2).to(patch.dtype)[:, None, :, None, None]
        painted = torch.where(inside, colour, patch)
        same = (painted == patch).flatten(1).all(dim=1)[:, None, None, None, None]
        return torch.where(same & inside, 1 - colour, painted)

    def _near(self, family: Placements, place: Int[Tensor, " P"], t: int, u: Int[Tensor, "P D"]) -> Int[Tensor, " P"]:
        """The same of places that fill no rectangle: another one whose anchor is within reach, or none."""
        reach = [max(1, int(0.75 * (1 - t / self.queries) * length)) for length in family.size]
        anchors = family.anchors.to(place.device)
        away = (anchors[place][:, None] - anchors).abs()
        near = (away <= torch.tensor(reach, device=away.device)).all(dim=2)
        near[torch.arange(len(place)), place] = False
        number = u[:, 1] % near.sum(dim=1).clamp(min=1)
        chosen = ((near.cumsum(dim=1) == number[:, None] + 1) & near).int().argmax(dim=1)
        return torch.where(near.any(dim=1), chosen, place)

    def _moved(
        self, search: Search, sites: Int[Tensor, "P count"], t: int, u: Int[Tensor, "P D"]
    ) -> Int[Tensor, "P count"]:
        """One patch of each row at another placement within reach, all of them alike likely."""
        which, moved = u[:, 0] % sites.shape[1], sites.clone()
        for k, family in enumerate(search.families):
            own = (which == k).nonzero()[:, 0]
            moved[own, k] = self._elsewhere(family, sites[own, k], t, u[own])
        return moved

    def _elsewhere(
        self, family: Placements, place: Int[Tensor, " P"], t: int, u: Int[Tensor, "P D"]
    ) -> Int[Tensor, " P"]:
        rows, columns = (length - m + 1 for length, m in zip(family.size, family.box, strict=True))
        if len(family) != rows * columns or len(family) == 1:
            return self._near(family, place, t, u)
        row, column = place // columns, place % columns
        reach = [max(1, int(0.75 * (1 - t / self.queries) * length)) for length in family.size]
        top, left = (row - reach[0]).clamp(min=0), (column - reach[1]).clamp(min=0)
        tall = (row + reach[0]).clamp(max=rows - 1) - top + 1
        wide = (column + reach[1]).clamp(max=columns - 1) - left + 1
        number = u[:, 1] % (tall * wide - 1)
        number = number + (number >= (row - top) * wide + column - left).long()  # never where it is
        return (top + number // wide) * columns + left + number % wide


def _begin(search: Search, image: list[int]) -> tuple[Int[Tensor, "P count"], Float[Tensor, "P count C h w"]]:
    """Random placements, and stripes."""
    count, channels, (height, width) = search.threat.count, search.x.shape[1], search.patch_size
    sites = search.y.new_zeros(len(image), count)
    stripes = search.x.new_zeros(len(image), count, channels, 1, width)
    for row, i in enumerate(image):
        stream = search.stream(i)
        sites[row] = search.drawn([i], stream)[0]
        stripes[row] = torch.randint(2, stripes.shape[1:], generator=stream)
    return sites, stripes.expand(-1, -1, -1, height, -1).contiguous()


def _draw(search: Search, image: list[int]) -> Int[Tensor, "P T D"]:
    """Whole numbers for the next T queries, from each image's own stream: their remainders are evenly spread."""
    shape = (_DRAWN, 3 + search.x.shape[1])
    if not image:
        return search.y.new_zeros(0, *shape)
    return torch.stack([torch.randint(2**40, shape, generator=search.stream(i)) for i in image]).to(search.x.device)

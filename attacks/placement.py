"""Placements to try: those that are open, a few in turn or all, coarse grids, and sums of a map under a patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.search import Search
from attacks.surfaces.base import OpenPlacements, Site
from robustpatch.threats.base import Placements

_LOOKS = 4  # the share of the budget, 1 in so many, that looks at placements may take
Content = Callable[[Search, list[int], Tensor], Tensor]  # for P images, by number, at sites [P,count]: [P,count,C,h,w]


def open_placements(
    search: Search, rivals: int = 3, *, batch: int | None = None, within: int | None = None
) -> list[OpenPlacements]:
    """The open placements of each image, at most `rivals` rivals each; equals in random order, from the image's stream.

    With a `batch`, a classifier of which nothing is known is asked itself: one random patch is scored at each
    placement, or at as many as a quarter of the evaluations `within` pays for, and where it brought success nearest
    comes first. Of one patch alone.
    """
    images, sites = len(search.y), len(search.families[0])
    shuffled = [torch.randperm(sites, generator=search.stream(i)).to(search.x.device) for i in range(images)]
    if batch is not None and search.surface.blind:
        looked = sites if within is None else min(sites, within // (_LOOKS * search.surface.forward_cost))
        sites_of = torch.stack(shuffled)[:, :looked] if shuffled else search.y.new_zeros(0, looked)
        values = try_everywhere(search, sites_of[..., None], lambda s, image, _: s.noise(image), batch)
        orders = [value.argsort(stable=True) for value in values]
        shuffled = [torch.cat([s[order], s[looked:]]) for s, order in zip(shuffled, orders, strict=True)]
    return search.surface.open_placements(shuffled, rivals)


def sites(search: Search, *, guided: bool = True) -> list[Iterator[Site]]:
    """For each image, placements for ever, from its own stream.

    Where the surface guides and the search is to be `guided` by it: the open ones (none, if all are closed), one of
    each touched set in turn, cheapest first, again from the start when all have been tried, each with the rival
    cheapest there; several patches where the surface chooses them together. Else uniformly random ones.
    """
    images, surface = range(len(search.y)), search.surface
    if guided and surface.groups and search.threat.count > 1:
        return [surface.several(i, _chance(search, i)) for i in images]
    if not (guided and surface.guides) or search.threat.count > 1:
        return [_random(search, i) for i in images]
    found = open_placements(search)
    search.open = torch.tensor([len(each) for each in found], device=search.y.device)
    for i in images:  # so that what is drawn later is what records of earlier versions were made with
        _chance(search, i)
    return [_open(each) for each in found]


def _random(search: Search, image: int) -> Iterator[Site]:
    chance = _chance(search, image)
    while True:
        yield tuple(search.drawn([image], chance)[0].tolist()), -1


def _open(found: OpenPlacements) -> Iterator[Site]:
    while len(found):
        for site, rival in found.spread():
            yield (site,), rival


def _chance(search: Search, image: int) -> torch.Generator:
    """A stream for the image's placements alone: how many are asked for at once must not move the contents drawn."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=search.stream(image))))


def try_everywhere(
    search: Search, sites: Int[Tensor, "B M count"], content: Content, batch: int
) -> Float[Tensor, "B M"]:
    """Score content at M sites of each image, in order; inf where a broken or exhausted image does not come to them."""
    value = torch.full(sites.shape[:2], torch.inf, device=sites.device)
    start = 0
    while start < sites.shape[1]:
        image = search.going().nonzero()[:, 0]
        if len(image) == 0:
            break
        block = slice(start, start + max(1, batch // len(image)))
        where = sites[image, block]
        rows = image.repeat_interleave(where.shape[1])
        patch = content(search, rows.tolist(), where.flatten(0, 1))
        value[image, block] = search.try_patches(rows, where.flatten(0, 1), patch, batch=batch).view(where.shape[:2])
        start = block.stop
    return value


def nearest(search: Search, placement: Int[Tensor, "B M"], patch: int, other: int) -> Int[Tensor, "B M"]:
    """Of the `other` patch, the placements whose anchors are nearest to those of these placements of a patch."""
    if search.families[patch] == search.families[other]:
        return placement
    of, to = (search.families[k].anchors.to(placement.device).float() for k in (patch, other))
    return torch.cdist(of, to).argmin(dim=1)[placement]


def grid(family: Placements, stride: int) -> Bool[Tensor, " L"]:
    """Mark the placements on rows and columns that are multiples of `stride`, or the last ones; all of those that no
    grid orders, and of those in a region where none is on it.
    """
    anchors = family.anchors
    marked = ((anchors % stride == 0) | (anchors == anchors.amax(dim=0))).all(dim=1)
    return marked if bool(marked.any()) else torch.ones_like(marked)


def window_sums(values: Float[Tensor, "B H W"], family: Placements) -> Float[Tensor, "B L"]:
    """Σ of a map over the patch at every placement."""
    if family.rectangle is None:
        return (family.means(values.double()) * family.pixels).to(values.dtype)
    total = torch.nn.functional.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    h, w = family.rectangle
    sums = total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]
    return sums.flatten(1).to(values.dtype)

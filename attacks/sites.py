"""Which placements an attack tries that goes to a few of them: those that are open, or random ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from attacks.placement import open_placements
from attacks.search import Search
from attacks.surfaces.base import OpenPlacements, Site


def sites(search: Search, *, guided: bool = True) -> list[Iterator[Site]]:
    """For each image, placements for ever, from its own stream.

    Where the surface guides and the search is to be `guided` by it: the open ones (none, if all are closed), one of
    each touched set in turn, cheapest first, again from the start when all have been tried, each with the rival
    cheapest there; of several patches the others go to random open placements, unless the surface chooses them
    together. Else uniformly random ones.
    """
    images, surface = range(len(search.y)), search.surface
    if not (guided and surface.guides):
        return [_random(search, _chance(search, i)) for i in images]
    if surface.groups and search.threat.count > 1:
        return [surface.several(i, _chance(search, i)) for i in images]
    found = open_placements(search)
    search.open = torch.tensor([len(each) for each in found], device=search.y.device)
    return [_open(search, each, _chance(search, i)) for i, each in zip(images, found, strict=True)]


def _random(search: Search, chance: torch.Generator) -> Iterator[Site]:
    while True:
        numbers = torch.randint(len(search.placements), (search.threat.count,), generator=chance)
        yield tuple(numbers.tolist()), -1


def _open(search: Search, found: OpenPlacements, chance: torch.Generator) -> Iterator[Site]:
    while len(found):
        for first, rival in found.spread():
            rest = torch.randint(len(found), (search.threat.count - 1,), generator=chance)
            yield (first, *found.placement[rest].tolist()), rival


def _chance(search: Search, image: int) -> torch.Generator:
    """A stream for the image's placements alone: how many are asked for at once must not move the contents drawn."""
    return torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=search.stream(image))))

"""The pixels that ablations keep and patches touch, drawn one by one; see `robustpatch.proof.verifier`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations, product
from math import comb, prod

import numpy as np

from robustpatch.proof.footprints import MOST_LISTED, Listed, Threat

_ABLATION = re.compile(
    r"(?:([1-9][0-9]{0,6})\*grid-)?(columns|rows|blocks):([1-9][0-9]{0,6})(?:x([1-9][0-9]{0,6}))?"
    r"(?:/([2-9]|[1-9][0-9]{1,6}))?"
)
_MOST = 2**20  # ablations of an image, and unions of patches
_MOST_CELLS = 2**20  # that all choices of a grid's cells keep
_MOST_PIXELS = 2**28  # of all masks together, and ablations of all places and of all touched sets
_MOST_PLACES = 2**24  # pixels of an image


def masks(ablation: str, height: int, width: int) -> np.ndarray:
    """The kept pixels [N,H,W] of "columns:2", "rows:3", "blocks:4x6", with a stride "columns:19/10", or, of a grid,
    "2*grid-columns:1" and "2*grid-blocks:4": every two of its cells; of "columns:2+rows:2" one after the other.

    Raises `ValueError` for a text that no ablation has, one that does not fit the image, and for more masks than are
    drawn.
    """
    parts = [_Part(part, ablation, height, width) for part in ablation.split("+")]
    number = sum(part.number for part in parts)
    check_drawn(ablation, number, height, width)
    kept = np.zeros((number, height, width), bool)
    first = 0
    for part in parts:
        part.draw(kept[first : first + part.number])
        first += part.number
    return kept


class _Part:
    """One ablation of a text that may name several: windows that wrap around the border, or cells of a grid."""

    def __init__(self, text: str, whole: str, height: int, width: int) -> None:
        known = _ABLATION.fullmatch(text)
        keep, kind, first, last, stride = known.groups() if known else [""] * 5
        if not known or (last and (kind != "blocks" or last == first)) or (keep and (kind == "rows" or last or stride)):
            raise ValueError(f"the ablation {whole[:80]!r} is unknown to this verifier")
        self.keep, self.wraps = int(keep or 1), not keep
        tall, wide = int(first), int(last or first)
        self.size = (height if kind == "columns" else tall, width if kind == "rows" else wide)
        step = int(stride or 1) if self.wraps else tall
        self.step = (height if kind == "columns" else step, width if kind == "rows" else step)
        self.cells = -(-height // self.step[0]) * -(-width // self.step[1])
        fits = all(
            own <= side for own in (self.size, self.step) for own, side in zip(own, (height, width), strict=True)
        )
        if not fits or self.keep > self.cells:
            raise ValueError(f"the ablation {whole[:80]!r} does not fit images of {height}x{width}")
        self.number = _choices(self.cells, self.keep)
        if self.number * self.keep > _MOST_CELLS and self.keep > 1:
            self.number = _MOST + 1

    def draw(self, kept: np.ndarray) -> None:
        """Set the kept pixels of `kept` [N,H,W], which are all False."""
        cells = list(product(*(self._windows(axis, side) for axis, side in enumerate(kept.shape[1:]))))
        for mask, chosen in zip(kept, combinations(cells, self.keep), strict=True):
            for cell in chosen:
                mask[np.ix_(*cell)] = True

    def _windows(self, axis: int, length: int) -> list[list[int]]:
        size = self.size[axis]
        return [
            [at % length for at in range(start, start + size) if self.wraps or at < length]
            for start in range(0, length, self.step[axis])
        ]


def touched_sets(kept: np.ndarray, threat: Threat) -> np.ndarray:
    """The distinct sets [S,N] of ablations that the patches of a threat can touch together.

    Raises `ValueError` for more places, or more unions of several patches, than are drawn.
    """
    n, single = len(kept), []
    for patch, count in threat:
        if isinstance(patch, Listed):
            check_places(str(patch), len(patch.places), n)
        packed = np.packbits(patch.hits(kept), axis=1)
        single.append(({int.from_bytes(row.tobytes(), "big") for row in packed}, count))
    check_unions([(len(sets), count) for sets, count in single], n)
    unions = {0}
    for sets, count in single:
        # A union of as many patches as there are sets, or more, is one of all of them.
        for _ in range(min(count, len(sets))):
            unions = {union | one for union in unions for one in sets}
    content = b"".join(union.to_bytes(-(-n // 8), "big") for union in sorted(unions))
    packed = np.frombuffer(content, np.uint8).reshape(len(unions), -1)
    return np.unpackbits(packed, axis=1, count=n).view(bool)


def check_drawn(ablation: str, number: int, height: int, width: int) -> None:
    """Refuse with `ValueError` more masks, or larger ones, than are drawn."""
    if number > _MOST or number * height * width > _MOST_PIXELS or height * width > _MOST_PLACES:
        raise ValueError(
            f"{ablation[:80]} has too many masks of {height}x{width}: at most {_MOST} are drawn, of {_MOST_PIXELS} "
            f"pixels in all and {_MOST_PLACES} each"
        )


def check_places(patch: str, places: int, ablations: int) -> None:
    """Refuse with `ValueError` more listed places than are drawn."""
    most = min(MOST_LISTED, _MOST_PIXELS // ablations)
    if places > most:
        raise ValueError(f"{patch[:80]} has {places} places, for {ablations} ablations at most {most} are drawn")


def check_unions(parts: Sequence[tuple[int, int]], ablations: int) -> None:
    """Refuse with `ValueError` what has more unions than are drawn: of `parts`, each a number of sets and how many of
    them are taken at the same time.
    """
    unions = prod(_choices(sets + min(count, sets) - 1, min(count, sets)) for sets, count in parts)
    if unions > _MOST or unions * ablations > _MOST_PIXELS:
        count, sets = sum(count for _, count in parts), " and ".join(str(number) for number, _ in parts)
        raise ValueError(f"{count} patches have more unions than are drawn: of {sets} sets of {ablations} ablations")


def _choices(number: int, some: int) -> int:
    """The number of choices of `some` of so many; more than a million of them need not be exact."""
    return comb(number, some) if min(some, number - some) <= 20 else _MOST + 1

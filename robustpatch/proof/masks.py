"""The pixels that ablations keep and patches touch, drawn one by one; see `robustpatch.proof.verifier`."""

from __future__ import annotations

import re
from itertools import combinations, combinations_with_replacement, product
from math import comb

import numpy as np

_ABLATION = re.compile(
    r"(?:([1-9][0-9]{0,6})\*grid-)?(columns|rows|blocks):([1-9][0-9]{0,6})(?:x([1-9][0-9]{0,6}))?"
    r"(?:/([2-9]|[1-9][0-9]{1,6}))?"
)
_MOST = 2**20  # ablations of an image, and unions of patches
_MOST_CELLS = 2**20  # that all choices of a grid's cells keep
_MOST_PIXELS = 2**28  # of all masks together, and ablations of all touched sets
_MOST_PLACES = 2**24  # pixels of an image
_AT_ONCE = 2**24  # pixels of masks over which patches slide at once


def masks(ablation: str, height: int, width: int) -> np.ndarray:
    """The kept pixels [N,H,W] of "columns:2", "rows:3", "blocks:4x6", with a stride "columns:19/10", or, of a grid,
    "2*grid-columns:1" and "2*grid-blocks:4": every two of its cells; of "columns:2+rows:2" one after the other.

    Raises `ValueError` for a text that no ablation has, one that does not fit the image, and for more masks than are
    drawn.
    """
    parts = [_Part(part, ablation, height, width) for part in ablation.split("+")]
    number = sum(part.number for part in parts)
    if number > _MOST or number * height * width > _MOST_PIXELS or height * width > _MOST_PLACES:
        raise ValueError(
            f"{ablation[:80]} has too many masks of {height}x{width}: at most {_MOST} are drawn, of {_MOST_PIXELS} "
            f"pixels in all and {_MOST_PLACES} each"
        )
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


def touched_sets(kept: np.ndarray, height: int, width: int, count: int) -> np.ndarray:
    """The distinct sets [S,N] of ablations that `count` rectangles of `height` × `width` can touch together.

    Raises `ValueError` for patches that are none or do not fit, and for more unions of several than are drawn.
    """
    rows, columns = kept.shape[1] - height + 1, kept.shape[2] - width + 1
    if min(height, width, count) < 1 or count > kept.shape[1] * kept.shape[2]:
        raise ValueError(f"{count} patches of {height}x{width} are none, or more than there are pixels")
    if rows < 1 or columns < 1:
        raise ValueError(f"a {height}x{width} patch does not fit into {kept.shape[1]}x{kept.shape[2]}")
    n, hits = len(kept), np.zeros((rows * columns, len(kept)), bool)
    some = max(1, _AT_ONCE // kept[0].size)
    for first in range(0, n, some):
        hits[:, first : first + some] = _slid(kept[first : first + some], height, width)
    single = sorted({row.tobytes() for row in hits})
    sets = [np.frombuffer(one, bool) for one in single]
    # A union of as many patches as there are sets, or more, is one of all of them.
    count = min(count, len(sets))
    unions = _choices(len(sets) + count - 1, count)
    if unions > _MOST or unions * n > _MOST_PIXELS:
        raise ValueError(f"{count} patches have more unions than are drawn: of {len(sets)} sets of {n} ablations")
    if count > 1:
        together = {np.logical_or.reduce(some).tobytes() for some in combinations_with_replacement(sets, count)}
        sets = [np.frombuffer(one, bool) for one in sorted(together)]
    return np.array(sets)


def _slid(kept: np.ndarray, height: int, width: int) -> np.ndarray:
    """True where a placement covers a kept pixel of a mask: [L,n], row by row, by counting the pixels before it."""
    before = np.zeros((len(kept), kept.shape[1] + 1, kept.shape[2] + 1), np.int32)
    before[:, 1:, 1:] = kept.cumsum(axis=1, dtype=np.int32).cumsum(axis=2, dtype=np.int32)
    rows = before[:, height:] - before[:, :-height]
    return (rows[:, :, width:] > rows[:, :, :-width]).reshape(len(kept), -1).T


def _choices(number: int, some: int) -> int:
    """The number of choices of `some` of so many; more than a million of them need not be exact."""
    return comb(number, some) if min(some, number - some) <= 20 else _MOST + 1

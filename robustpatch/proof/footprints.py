"""The patches of a proof file: rectangles anywhere, or listed sets of pixels at listed places. Needs numpy alone.

Two arrays list what is no rectangle. `runs` [R,4] has a row for each run of pixels: set, row, start, length, from the
corner of the set's box. `places` [P,4] has one for each place of a patch: family, set, row and column of that corner.
Sets and families are numbered from 0. A threat is [height, width, count], a rectangle that may be anywhere; or
{"families": [[family, count], …]}: so many patches of each family at the same time, each at a place of its own family.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MOST_LISTED = 2**20  # runs, and places
_AT_ONCE = 2**24  # pixels of masks over which patches slide at once, and places looked up
_DRAWN = 64  # rows and columns of a set that is shown


@dataclass(frozen=True)
class Rectangle:
    """`height` × `width` pixels, anywhere inside the image."""

    height: int
    width: int

    def hits(self, kept: np.ndarray) -> np.ndarray:
        """True where a place covers a kept pixel of a mask [N,H,W]: [L,N], row by row, by counting pixels."""
        rows, columns = kept.shape[1] - self.height + 1, kept.shape[2] - self.width + 1
        hits = np.zeros((rows * columns, len(kept)), bool)
        some = max(1, _AT_ONCE // kept[0].size)
        for first in range(0, len(kept), some):
            hits[:, first : first + some] = self._slid(kept[first : first + some])
        return hits

    def _slid(self, kept: np.ndarray) -> np.ndarray:
        before = np.zeros((len(kept), kept.shape[1] + 1, kept.shape[2] + 1), np.int32)
        before[:, 1:, 1:] = kept.cumsum(axis=1, dtype=np.int32).cumsum(axis=2, dtype=np.int32)
        rows = before[:, self.height :] - before[:, : -self.height]
        return (rows[:, :, self.width :] > rows[:, :, : -self.width]).reshape(len(kept), -1).T

    def work(self, number: int, pixels: int) -> int:
        """About how many additions `hits` takes for so many masks of so many pixels."""
        return 2**4 * number * pixels + 2**12 * pixels

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@dataclass(frozen=True, eq=False)
class Listed:
    """Sets of pixels, each by its runs [r,3] (row, start, length); and `places` [L,3] (set, row, column), by set."""

    name: str
    sets: list[np.ndarray]
    places: np.ndarray

    def hits(self, kept: np.ndarray) -> np.ndarray:
        """As a rectangle's, run by run: a run covers a kept pixel where more are counted at its end than before it."""
        hits = np.zeros((len(self.places), len(kept)), bool)
        ends = np.searchsorted(self.places[:, 0], np.arange(len(self.sets) + 1)).tolist()
        some = max(1, _AT_ONCE // max(kept[0].size, len(self.places)))
        for n in range(0, len(kept), some):
            before = np.zeros((min(some, len(kept) - n), kept.shape[1], kept.shape[2] + 1), np.int32)
            before[:, :, 1:] = kept[n : n + some].cumsum(axis=2, dtype=np.int32)
            for runs, start, stop in zip(self.sets, ends, ends[1:], strict=False):
                _, row, column = self.places[start:stop].T
                for down, across, length in runs:
                    counted = before[:, row + down, column + across + length] > before[:, row + down, column + across]
                    hits[start:stop, n : n + some] |= counted.T
        return hits

    def work(self, number: int, pixels: int) -> int:
        runs, taken = self._runs
        calls = runs * -(-number * max(pixels, len(self.places)) // _AT_ONCE)
        return 2**4 * number * (pixels + taken) + 2**13 * calls

    @cached_property
    def _runs(self) -> tuple[int, int]:
        """The runs of all sets, and of all places."""
        runs = np.array([len(own) for own in self.sets], np.int64)
        return int(runs.sum()), int(runs[self.places[:, 0]].sum())

    @cached_property
    def text(self) -> str:
        """The name, the number of pixels and the number of places."""
        pixels, boxes = [int(own[:, 2].sum()) for own in self.sets], [_box(own) for own in self.sets]
        tall, wide = (max(sides) for sides in zip(*boxes, strict=True))
        some = f"one of {len(pixels)} sets of {min(pixels)} to {max(pixels)}" if len(pixels) > 1 else f"{pixels[0]}"
        return f"{self.name} ({some} pixels within {tall}x{wide}, at {len(self.places)} places)"

    def __str__(self) -> str:
        return self.text

    def drawn(self) -> str:
        """The set, where there is one and it is not wide: its name and a line for each of its rows."""
        tall, wide = _box(self.sets[0])
        if len(self.sets) > 1 or max(tall, wide) > _DRAWN:
            return ""
        canvas = np.full((tall, wide), ".")
        for row, start, length in self.sets[0]:
            canvas[row, start : start + length] = "#"
        return "\n".join([f"{self.name}:", *("  " + "".join(row) for row in canvas)])


Patch = Rectangle | Listed
Threat = tuple[tuple[Patch, int], ...]  # what is there at the same time, and how many of each


def listed(runs: np.ndarray, places: np.ndarray, size: tuple[int, int]) -> list[Listed]:
    """The families of the two arrays, on images of that size. Raises `ValueError` for arrays that `write` never makes:
    runs that are empty, out of order or next to each other, sets not cut to their box, places outside the image, out
    of order or twice, and numbers left out.
    """
    for name, array in (("runs", runs), ("places", places)):
        if array.shape[1] != 4 or not 0 < len(array) <= MOST_LISTED:
            raise ValueError(f"{name} has shape {list(array.shape)}; 1 to {MOST_LISTED} rows of 4 are read")
        if array.min() < 0 or array.max() > 2**24:
            raise ValueError(f"{name} has numbers outside of 0 to {2**24}")
    runs, places = runs.astype(np.int64), places.astype(np.int64)
    own, row, start, length = runs.T
    _check_numbers("sets in runs", own)
    same, below = np.diff(own) == 0, np.diff(row)
    apart = (below > 0) | ((below == 0) & (start[1:] > (start + length)[:-1]))
    if length.min() < 1 or not apart[same].all():
        raise ValueError("runs holds an empty run, or two of one set that are out of order, overlap or meet")
    begins = np.append(0, np.flatnonzero(~same) + 1)
    if row[begins].any() or np.minimum.reduceat(start, begins).any():
        raise ValueError("runs holds a set that does not begin in row 0 and column 0 of its box")
    family, chosen, at_row, at_column = places.T
    _check_numbers("families in places", family)
    _check_numbers("sets in places", chosen)
    if chosen[-1] + 1 != len(begins) or (np.diff(family) > np.diff(chosen)).any():
        raise ValueError(f"places name {chosen[-1] + 1} sets of {len(begins)} in runs, or one in two families")
    tall, wide = np.maximum.reduceat(runs[:, 1], begins) + 1, np.maximum.reduceat(start + length, begins)
    if (at_row + tall[chosen] > size[0]).any() or (at_column + wide[chosen] > size[1]).any():
        raise ValueError(f"places holds one outside of the image, {size[0]}x{size[1]}")
    steps = np.diff(places[:, 1:], axis=0)
    if not ((steps[:, 0] > 0) | (steps[:, 1] > 0) | ((steps[:, 1] == 0) & (steps[:, 2] > 0))).all():
        raise ValueError("places holds one twice, or out of order")
    sets, found = np.split(runs[:, 1:], begins[1:]), []
    for part in np.split(places, np.flatnonzero(np.diff(family)) + 1):
        first, last = part[0, 1], part[-1, 1]
        found.append(Listed(f"shape {len(found) + 1}", sets[first : last + 1], part[:, 1:] - [first, 0, 0]))
    return found


def _box(runs: np.ndarray) -> tuple[int, int]:
    return int(runs[:, 0].max()) + 1, int((runs[:, 1] + runs[:, 2]).max())


def _check_numbers(name: str, numbers: np.ndarray) -> None:
    if numbers[0] or not np.isin(np.diff(numbers), (0, 1)).all():
        raise ValueError(f"{name} are not numbered 0, 1, … one after the other")


def threats(given: Any, size: tuple[int, int], families: list[Listed]) -> tuple[Threat, ...]:
    """The threats of a claim. Raises `ValueError` for what is none, and where a family is left out."""
    if not isinstance(given, list) or not given:
        raise ValueError(f"threats are {brief(given)}: nothing is claimed")
    found, used = [], set()
    for one in given:
        if isinstance(one, dict):
            if one.keys() != {"families"} or not isinstance(one["families"], list) or not one["families"]:
                raise ValueError(f"a threat is {brief(one)}; its families, with counts, are needed")
            pairs = [whole_numbers("a family and its count", pair, 2, least=(0, 1)) for pair in one["families"]]
            numbers = [number for number, _ in pairs]
            if numbers != sorted(set(numbers)) or numbers[-1] >= len(families):
                raise ValueError(
                    f"a threat has the families {brief(numbers)} of {len(families)}, out of order or unknown"
                )
            used |= set(numbers)
            threat: Threat = tuple((families[number], count) for number, count in pairs)
        else:
            height, width, count = whole_numbers("a threat", one, 3, least=(1, 1, 1))
            if height > size[0] or width > size[1]:
                raise ValueError(f"a patch of {height}x{width} does not fit into {size[0]}x{size[1]}")
            threat = ((Rectangle(height, width), count),)
        if sum(count for _, count in threat) > size[0] * size[1]:
            raise ValueError(f"a threat is {brief(one)}: more patches than there are pixels")
        found.append(threat)
    if len(used) < len(families):
        raise ValueError(f"places are of {len(families)} families, and threats name {len(used)} of them")
    return tuple(found)


def whole_numbers(name: str, value: Any, length: int, *, least: tuple[int, ...]) -> tuple[int, ...]:
    """The numbers of a list of that length, each at least so large; raises `ValueError` for anything else."""
    right = isinstance(value, list) and len(value) == length and all(type(number) is int for number in value)
    if not right or any(number < low for number, low in zip(value, least, strict=True)):
        raise ValueError(f"{name} is {brief(value)}: {length} whole numbers of at least {list(least)} are needed")
    return tuple(value)


def brief(value: Any) -> str:
    """The value as text, on one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

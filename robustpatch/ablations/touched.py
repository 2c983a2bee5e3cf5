"""placement -> the set of ablations it touches, and sums of votes over those sets.

An ablation is touched by a placement when the two share a pixel. Many placements touch the same ablations (on a 28×28
image a 5×5 patch has 576 placements and only 24 sets of columns), so everything is computed once per distinct set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class Touched(ABC):
    """The S distinct sets of ablations that the L placements of one rectangle touch.

    `sizes` [S] is the number of ablations in each set, `set_of_placement` [L] the set of each placement in row-major
    order, `num_ablations` N. `exact_unions` says whether `worst_union` is attained or only an upper bound.
    """

    sizes: Int[Tensor, " S"]
    set_of_placement: Int[Tensor, " L"]
    num_ablations: int
    exact_unions: bool = False

    @abstractmethod
    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        """True where an ablation belongs to the set, for each of the sets asked for."""

    @abstractmethod
    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        """Σ over the ablations of each set of integer (or boolean) `values` [B,N,K], exactly: in int32, or in int64
        where the values are.
        """

    def indices(self, s: int) -> Int[Tensor, " size"]:
        """The ablations of set `s`, ascending."""
        return self.member(torch.tensor(s)).nonzero()[:, 0]

    def most(self, count: int) -> int:
        """At least the most ablations in a union of `count` sets: `count` times the largest set, at most N."""
        return min(self.num_ablations, count * int(self.sizes.max()))

    def worst_union(self, damage: Int[Tensor, "B N J"], count: int) -> Int[Tensor, "B J"]:
        """At least the largest Σ of non-negative integer `damage` over a union of `count` sets.

        The damage of a union is at most the sum of the damages, so `count` times the worst set bounds it, and so does
        the damage of all ablations together. Exact for `count` = 1, and where `exact_unions` is True.
        """
        count = min(count, self.num_ablations)  # N sets already cover all that any number of them can
        worst = self.sums(damage).amax(dim=1)
        if count == 1:
            return worst
        return torch.minimum(count * worst.long(), damage.sum(dim=1, dtype=torch.int64)).to(sum_type(damage))


class DenseTouched(Touched):
    """The definition itself: any masks [N,H,W], one incidence matrix [S,N]. For small N and for new ablations.

    `incidence` has a row for each placement; or for each of some sets, and `set_of_placement` tells which is whose.
    """

    def __init__(self, incidence: Bool[Tensor, "L N"], set_of_placement: Int[Tensor, " P"] | None = None) -> None:
        self._incidence, of_row = torch.unique(incidence, dim=0, return_inverse=True)
        self.set_of_placement = of_row if set_of_placement is None else of_row[set_of_placement]
        self.sizes = self._incidence.sum(dim=1)
        self.num_ablations = incidence.shape[1]

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        return self._incidence.to(sets.device)[sets]

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        incidence = self._incidence.to(values.device, torch.float64)  # exact far beyond any number of ablations
        return torch.einsum("sn,bnk->bsk", incidence, values.to(torch.float64)).to(sum_type(values))


@dataclass(frozen=True)
class Axis:
    """Windows along one image axis: `size` pixels from 0, `stride`, 2·`stride`, … on, wrapping around `length`."""

    length: int
    size: int
    stride: int

    @property
    def count(self) -> int:
        """Number of windows, ceil(length / stride)."""
        return -(-self.length // self.stride)

    def masks(self, index: Int[Tensor, "..."]) -> Bool[Tensor, "... length"]:
        """True at the pixels that each window keeps."""
        pixel = torch.arange(self.length, device=index.device)
        return (pixel - index[..., None] * self.stride) % self.length < self.size

    def starts_before(self, pixel: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The number of windows that start in [0, pixel) on the line that repeats the axis; negative left of 0."""
        laps = torch.div(pixel, self.length, rounding_mode="floor")
        rest = pixel - laps * self.length
        return laps * self.count + torch.div(rest + self.stride - 1, self.stride, rounding_mode="floor")

    def runs(self, patch: int) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Windows touched by `patch` pixels at each placement p: the run [begin, end) of window numbers modulo `count`.

        A window starting at a covers a pixel of [p, p+patch) iff a lies in (p - size, p + patch) on the repeated line;
        when that interval is as long as the axis, every window is touched. Counting the starts in it is right for
        every stride, also where the wrap brings the last window and the first closer than `stride`.
        """
        placement = torch.arange(self.length - patch + 1)
        begin = self.starts_before(placement - self.size + 1)
        end = self.starts_before(placement + patch)
        if self.size + patch - 1 >= self.length:
            begin = end - self.count
        return begin, end


class WindowsTouched(Touched):
    """Products of windows (bands and blocks): every set is a run of rows times a run of columns, sums are box sums.

    Sets are never listed and no [L,N] matrix exists: memory is O(N + S) for each image and class.
    """

    def __init__(self, rows: Axis, columns: Axis, height: int, width: int) -> None:
        self._counts = (rows.count, columns.count)
        self.num_ablations = rows.count * columns.count
        of_placement, self._runs = [], []
        for axis, patch in ((rows, height), (columns, width)):
            begin, end = axis.runs(patch)
            # Runs are told apart on the circle: on the line, equal sets can differ by a whole lap.
            runs, inverse = torch.unique(
                torch.stack([begin % axis.count, end - begin], dim=1), dim=0, return_inverse=True
            )
            of_placement.append(inverse)
            self._runs.append((runs[:, 0], runs[:, 1]))
        (_, row_length), (_, column_length) = self._runs
        self.sizes = torch.outer(row_length, column_length).flatten()
        self.set_of_placement = (of_placement[0][:, None] * len(column_length) + of_placement[1]).flatten()
        # Unions of several patches: solved exactly where only one axis has more than one window.
        self._line = next(
            (axis.runs(p) for axis, p, other in ((columns, width, rows), (rows, height, columns)) if other.count == 1),
            None,
        )
        self.exact_unions = self._line is not None

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        chosen = []
        per_row = len(self._runs[1][0])
        parts = (torch.div(sets, per_row, rounding_mode="floor"), sets % per_row)
        for (first, length), count, s in zip(self._runs, self._counts, parts, strict=True):
            number = torch.arange(count, device=sets.device)
            first, length = first.to(sets.device)[s], length.to(sets.device)[s]
            chosen.append((number - first[..., None]) % count < length[..., None])
        return (chosen[0][..., :, None] & chosen[1][..., None, :]).flatten(-2)

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        grid = values.to(sum_type(values)).unflatten(1, self._counts)
        for dim in (2, 1):
            first, length = (run.to(values.device) for run in self._runs[dim - 1])
            grid = _circular_run_sums(grid, dim, first, length)
        return grid.flatten(1, 2)

    def worst_union(self, damage: Int[Tensor, "B N J"], count: int) -> Int[Tensor, "B J"]:
        """The largest Σ of `damage` over a union of `count` sets: exact for columns and rows, else the sum bound.

        For bands the sets are runs [begin, end) of a circle in the order of their placements, both ends ascending. A
        run overlaps the union of the runs before it just where it overlaps the last of them and, around the circle,
        the first: so a dynamic programme over (first run, last run, number of runs) finds the best union.
        """
        if self._line is None or count == 1:
            return super().worst_union(damage, count)
        begin, end = (ends.to(damage.device) for ends in _maximal(*self._line))
        n, kind = self.num_ablations, sum_type(damage)
        count = min(count, n)
        prefix = torch.nn.functional.pad(
            damage.to(kind).repeat(1, 3, 1).cumsum(1, dtype=kind), (0, 0, 1, 0)
        )  # prefix[x + n] sums the line over [-n, x)
        best = damage.new_zeros(damage.shape[0], damage.shape[2], dtype=kind)
        for f in range(len(begin)):
            stop = torch.clamp(end[f:], max=int(begin[f]) + n)
            # union[:, q]: the most that `taken` runs can sum to, f the first and q the last of them
            union = (prefix[:, end[f] + n] - prefix[:, begin[f] + n])[:, None]
            last = end[f : f + 1]
            for _ in range(count - 1):
                low = torch.maximum(begin[f:, None], last)  # [q, p]
                gain = (prefix[:, stop + n][:, :, None] - prefix[:, low + n]).clamp(min=0)  # [B, q, p, J]
                ascending = (end[f:, None] >= last)[None, :, :, None]
                total = torch.where(ascending, union[:, None] + gain, -1)
                union, last = total.amax(dim=2), end[f:]
            best = torch.maximum(best, union.amax(dim=1))
        return best


def sum_type(values: Tensor) -> torch.dtype:
    """The integer type of sums: int64 for the int64 units of scores, int32 for votes."""
    return torch.int64 if values.dtype == torch.int64 else torch.int32


def _maximal(begin: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The runs that lie in no other, of runs whose ends ascend: the ends of these ascend strictly."""
    longest = torch.cat([begin[1:] != begin[:-1], torch.ones_like(begin[:1], dtype=torch.bool)])
    begin, end = begin[longest], end[longest]
    earliest = torch.cat([torch.ones_like(end[:1], dtype=torch.bool), end[1:] != end[:-1]])
    return begin[earliest], end[earliest]


def _circular_run_sums(values: Tensor, dim: int, first: Tensor, length: Tensor) -> Tensor:
    """Σ of `values` over circular runs of `length` entries from `first` on along `dim`: a running sum, read twice."""
    longest = int(length.max())
    line = torch.cat([values, values.narrow(dim, 0, longest)], dim=dim).cumsum(dim, dtype=values.dtype)
    line = torch.cat([torch.zeros_like(line.narrow(dim, 0, 1)), line], dim=dim)
    return line.index_select(dim, first + length) - line.index_select(dim, first)

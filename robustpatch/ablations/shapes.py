"""Touched sets of shapes other than rectangles, without a list of them: shifted shapes, some places, several shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from robustpatch.ablations.touched import Axis, Touched, sum_type
from robustpatch.errors import InvalidInput


class ShiftedTouched(Touched):
    """The sets that a set of pixels, moved over the image, touches among windows whose strides divide the image.

    Moving pattern P by a stride moves the touched windows by one: with p = stride·q + φ they are D_φ + q around the
    border, D_φ those that P touches at place φ. So the sums over all sets of one φ are a correlation of the votes with
    D_φ. D_φ is cut into rectangles, whose sums are differences of running sums; corners that meet cancel. O(N +
    S·corners of D) time and O(N + S) memory for each image and class; no two placements share a set here.
    """

    def __init__(self, rows: Axis, columns: Axis, pattern: Bool[Tensor, "h w"]) -> None:
        self._axes, self._grid = (rows, columns), (rows.count, columns.count)
        self.num_ablations = rows.count * columns.count
        self._places = (rows.length - pattern.shape[0] + 1, columns.length - pattern.shape[1] + 1)
        self._phases = {
            (down, across): _Phase(self._touched_at(pattern, down, across))
            for down in range(min(rows.stride, self._places[0]))
            for across in range(min(columns.stride, self._places[1]))
        }
        sizes = torch.zeros(self._places, dtype=torch.int64)
        for (down, across), phase in self._phases.items():
            sizes[down :: rows.stride, across :: columns.stride] = phase.size
        self.sizes = sizes.flatten()
        self.set_of_placement = torch.arange(len(self.sizes))

    @classmethod
    def applies(cls, rows: Axis, columns: Axis) -> bool:
        """Tell whether every stride divides its axis, so that moving by it leads from windows to windows."""
        return rows.length % rows.stride == 0 and columns.length % columns.stride == 0

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        (rows, columns), flat = self._axes, sets.flatten()
        row, column = torch.div(flat, self._places[1], rounding_mode="floor"), flat % self._places[1]
        found = torch.zeros(len(flat), *self._grid, dtype=torch.bool, device=sets.device)
        for (down, across), phase in self._phases.items():
            own = ((row % rows.stride == down) & (column % columns.stride == across)).nonzero()[:, 0]
            i, j = (torch.arange(count, device=sets.device) for count in self._grid)
            i = (i - torch.div(row[own], rows.stride, rounding_mode="floor")[:, None]) % rows.count
            j = (j - torch.div(column[own], columns.stride, rounding_mode="floor")[:, None]) % columns.count
            found[own] = phase.touched.to(sets.device)[i[:, :, None], j[:, None, :]]
        return found.view(*sets.shape, self.num_ablations)

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        kind, (rows, columns) = sum_type(values), self._axes
        grid = values.to(kind).unflatten(1, self._grid)
        # The grid once more below and to the right, as far as a moved D reaches beyond it; then running sums.
        below, right = (-(-places // axis.stride) - 1 for places, axis in zip(self._places, self._axes, strict=True))
        line = torch.cat([grid, grid[:, :below]], dim=1).cumsum(1, dtype=kind)
        line = torch.cat([line, line[:, :, :right]], dim=2).cumsum(2, dtype=kind)
        total = F.pad(line, (0, 0, 1, 0, 1, 0))  # total[r, c]: the sum over rows before r and columns before c
        out = values.new_zeros(len(values), *self._places, values.shape[2], dtype=kind)
        for (down, across), phase in self._phases.items():
            part = out[:, down :: rows.stride, across :: columns.stride]
            tall, wide = part.shape[1:3]
            for row, column, weight in phase.corners:
                part.add_(total[:, row : row + tall, column : column + wide], alpha=weight)
        return out.flatten(1, 2)

    def _touched_at(self, pattern: Bool[Tensor, "h w"], down: int, across: int) -> Bool[Tensor, "rows columns"]:
        """The windows that hold a pixel of the pattern whose box lies at (down, across)."""
        rows, columns = (axis.masks(torch.arange(axis.count)).float() for axis in self._axes)
        h, w = pattern.shape
        return rows[:, down : down + h] @ pattern.float() @ columns[:, across : across + w].T > 0.5


class _Phase:
    """A set of cells of the grid of windows, and how running sums make the sum over it."""

    def __init__(self, touched: Bool[Tensor, "rows columns"]) -> None:
        self.touched, self.size = touched, int(touched.sum())
        padded = F.pad(touched.long(), (1, 1, 1, 1))
        weight = padded[:-1, :-1] - padded[1:, :-1] - padded[:-1, 1:] + padded[1:, 1:]
        # The sum over the cells is Σ weight · total[row, column]: the weights are the cells' second differences.
        self.corners = [(row, column, int(weight[row, column])) for row, column in weight.nonzero().tolist()]


class SomeTouched(Touched):
    """Those of the sets of `whole` that some of the placements touch: a patch that may not lie everywhere."""

    def __init__(self, whole: Touched, placements: Int[Tensor, " L"]) -> None:
        self._whole, self.num_ablations = whole, whole.num_ablations
        self._sets, self.set_of_placement = torch.unique(whole.set_of_placement[placements], return_inverse=True)
        self.sizes = whole.sizes[self._sets]

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        return self._whole.member(self._sets.to(sets.device)[sets])

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        return self._whole.sums(values)[:, self._sets.to(values.device)]


class TogetherTouched(Touched):
    """The sets of patches of different shapes at the same time: `parts` says what each touches, and how many there are.

    There is no set for a single placement: `worst_union` bounds the damage of all patches by the sum of the worst of
    each shape, and by the damage of all ablations. `sizes` is the largest number of ablations that all can touch.
    """

    def __init__(self, parts: Sequence[tuple[Touched, int]]) -> None:
        self.parts = tuple(parts)
        self.num_ablations = parts[0][0].num_ablations
        self.sizes = torch.tensor([min(self.num_ablations, sum(part.most(count) for part, count in parts))])
        self.set_of_placement = torch.zeros(0, dtype=torch.int64)

    def most(self, count: int) -> int:
        return int(self.sizes)

    def member(self, sets: Int[Tensor, "..."]) -> Bool[Tensor, "... N"]:
        raise InvalidInput("patches of different shapes at the same time touch no set of one placement's own")

    def sums(self, values: Tensor) -> Int[Tensor, "B S K"]:
        raise InvalidInput("patches of different shapes at the same time touch no set of one placement's own")

    def worst_union(self, damage: Int[Tensor, "B N J"], count: int) -> Int[Tensor, "B J"]:
        """At least the largest Σ of non-negative `damage` over a union of one set of each patch; of all `parts`."""
        worst = [part.worst_union(damage, number).long() for part, number in self.parts]
        total = torch.stack(worst).sum(dim=0)
        return torch.minimum(total, damage.sum(dim=1, dtype=torch.int64)).to(sum_type(damage))

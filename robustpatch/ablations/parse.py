"""An ablation from its text, as options, recipes, checkpoints and proofs name it."""

from __future__ import annotations

import re
from collections.abc import Callable

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.ablations.union import Union
from robustpatch.errors import InvalidInput

_GRAMMAR = re.compile(r"(columns|rows|blocks):(\d{1,9})(?:x(\d{1,9}))?(?:/(\d{1,9}))?")
_GRID_GRAMMAR = re.compile(r"(?:(\d{1,9})\s*\*\s*)?grid-(columns|blocks):(\d{1,9})")


def _windows(text: str) -> Ablation | None:
    match = _GRAMMAR.fullmatch(text)
    # Blocks(4, 0) is the square in Python, but nobody writes 4x0 and means it.
    if match is None or (match[3] is not None and (match[1] != "blocks" or int(match[3]) == 0)):
        return None
    kind, size, other, stride = match[1], int(match[2]), match[3], int(match[4] or 1)
    if kind == "blocks":
        return Blocks(size, int(other) if other is not None else size, stride)
    return Columns(size, stride) if kind == "columns" else Rows(size, stride)


def _grid(text: str) -> Ablation | None:
    match = _GRID_GRAMMAR.fullmatch(text)
    if match is None:
        return None
    return (GridColumns if match[2] == "columns" else GridBlocks)(int(match[3]), int(match[1] or 1))


# A new kind: here. Each reads one ablation from its text, in lower case, or returns None for that of another.
READERS: list[Callable[[str], Ablation | None]] = [_windows, _grid]


def parse_ablation(text: str) -> Ablation:
    """Read "columns:2", "rows:3", "blocks:8", "blocks:4x6", with a stride "columns:19/10", of a grid
    "2*grid-columns:1", "2*grid-blocks:4", or several as one: "columns:2+rows:2". Raises `InvalidInput`.
    `str(ablation)` is the inverse.
    """
    text = text.strip().lower()
    if "+" in text:
        return Union(tuple(parse_ablation(part) for part in text.split("+")))
    for read in READERS:
        found = read(text)
        if found is not None:
            return found
    raise InvalidInput(
        f'ablation is {text!r}; use "columns:2", "rows:3" or "blocks:8" (size in pixels), '
        'with a stride after a slash: "columns:19/10", cells of a grid: "2*grid-columns:1", "2*grid-blocks:4", or '
        'several together: "columns:2+rows:2"'
    )


def parse_source(text: str) -> Ablation | SparseAblation:
    """Read "sparse:5", or what `parse_ablation` reads. Raises `InvalidInput`."""
    kind, _, keep = text.strip().lower().partition(":")
    if kind != "sparse":
        return parse_ablation(text)
    if not keep.isascii() or not keep.isdigit() or len(keep) > 9:
        raise InvalidInput(f'ablation is {text!r}; use "sparse:5" (pixels kept at random)')
    return SparseAblation(int(keep))

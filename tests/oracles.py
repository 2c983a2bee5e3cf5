"""Brute-force truths in plain Python loops: they share no code, and no formula, with the library."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, combinations_with_replacement, product


def windows(length: int, size: int, stride: int) -> list[set[int]]:
    """The pixels of each window along one axis, wrapping around."""
    found, start = [], 0
    while start < length:
        pixels, at = set(), start
        for _ in range(size):
            pixels.add(at)
            at = 0 if at + 1 == length else at + 1
        found.append(pixels)
        start += stride
    return found


def kept(text: str, height: int, width: int) -> list[set[tuple[int, int]]]:
    """The kept pixels (row, column) of each ablation of "columns:2/1", "rows:3/2", "blocks:4x6/1" and grids."""
    if "+" in text:
        return [some for part in text.split("+") for some in kept(part, height, width)]
    if "*" in text:
        return kept_of_grid(text, height, width)
    kind, _, rest = text.partition(":")
    sides, _, stride = rest.partition("/")
    first, _, second = sides.partition("x")
    a, b, step = int(first), int(second or first), int(stride or 1)
    rows = [set(range(height))] if kind == "columns" else windows(height, a, step)
    columns = [set(range(width))] if kind == "rows" else windows(width, b, step)
    return [{(r, c) for r in some_rows for c in some_columns} for some_rows in rows for some_columns in columns]


def kept_of_grid(text: str, height: int, width: int) -> list[set[tuple[int, int]]]:
    """The same of "2*grid-columns:3" and "2*grid-blocks:4": each pixel is put into the cell that it falls in."""
    keep, _, rest = text.partition("*")
    kind, _, size = rest.partition(":")
    cells: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for r in range(height):
        for c in range(width):
            cell = (0 if kind == "grid-columns" else r // int(size), c // int(size))
            cells.setdefault(cell, set()).add((r, c))
    return [set().union(*some) for some in combinations([cells[cell] for cell in sorted(cells)], int(keep))]


def rectangle(row: int, column: int, height: int, width: int) -> set[tuple[int, int]]:
    """The pixels of a patch whose top-left corner is (row, column)."""
    return {(row + i, column + j) for i in range(height) for j in range(width)}


def touched(text: str, patch: tuple[int, int], size: tuple[int, int]) -> list[frozenset[int]]:
    """For each placement in row-major order, the ablations that share a pixel with the patch."""
    pixels, found = kept(text, *size), []
    for row in range(size[0] - patch[0] + 1):
        for column in range(size[1] - patch[1] + 1):
            covered = rectangle(row, column, *patch)
            found.append(frozenset(n for n, some in enumerate(pixels) if any(pixel in some for pixel in covered)))
    return found


def unions(sets: list[frozenset[int]], count: int) -> list[frozenset[int]]:
    """What `count` patches can touch together."""
    return list({frozenset().union(*some) for some in combinations_with_replacement(set(sets), count)})


def winner(counts) -> int:
    """The class with the most votes; of equals, the first."""
    best = 0
    for k, n in enumerate(counts):
        if n > counts[best]:
            best = k
    return best


def subset_corruptions(votes: list[list[bool]], controlled: frozenset[int]) -> set[tuple[int, ...]]:
    """Every vote count reachable when each controlled ablation casts any subset of the K votes."""
    classes = len(votes[0])
    fixed = [sum(votes[n][k] for n in range(len(votes)) if n not in controlled) for k in range(classes)]
    subsets = list(product((0, 1), repeat=classes))
    return {
        tuple(fixed[k] + sum(cast[k] for cast in casts) for k in range(classes))
        for casts in product(subsets, repeat=len(controlled))
    }


def corruptions(votes, controlled: frozenset[int], close=None) -> list[tuple[int, ...]]:
    """The same vote counts, class by class (the classes are independent), with untouched close votes cast or not."""
    ranges = []
    for k in range(len(votes[0])):
        low = high = 0
        for n in range(len(votes)):
            unsure = close is not None and close[n][k]
            low += bool(n not in controlled and votes[n][k] and not unsure)
            high += bool(n in controlled or votes[n][k] or unsure)
        ranges.append(range(low, high + 1))
    return list(product(*ranges))


def lead(counts, c: int) -> int:
    """By how many votes `c` stays the winner: the least of counts[c] - counts[j], less one where j wins a tie."""
    return min(counts[c] - n - (j < c) for j, n in enumerate(counts) if j != c)


def worst_lead(votes, controlled: frozenset[int], close=None) -> int:
    """The least lead of the clean winner over every corruption: it can lose iff this is negative."""
    c = winner([sum(vote[k] for vote in votes) for k in range(len(votes[0]))])
    return min(lead(counts, c) for counts in corruptions(votes, controlled, close))


def sparse_touched(keep: int, patch: tuple[int, int, int], size: tuple[int, int]) -> tuple[Fraction, bool]:
    """The largest share, over placements of `count` patches, of all sets of `keep` pixels that share one with a patch;
    and whether some patches that reach it lie apart.
    """
    height, width, count = patch
    pixels = [(r, c) for r in range(size[0]) for c in range(size[1])]
    sites = [
        rectangle(row, column, height, width)
        for row in range(size[0] - height + 1)
        for column in range(size[1] - width + 1)
    ]
    covered = max((set().union(*some) for some in combinations_with_replacement(sites, count)), key=len)
    hit = total = 0
    for kept in combinations(pixels, keep):
        hit += any(pixel in covered for pixel in kept)
        total += 1
    return Fraction(hit, total), len(covered) == min(len(pixels), count * height * width)


def place(counts, y: int) -> int:
    """Where `y` comes when classes are sorted by votes, most first, and by index among equals; 0 is the winner."""
    return sorted(range(len(counts)), key=lambda j: (-counts[j], j)).index(y)


def lead_over(counts, y: int, k: int) -> int:
    """The lead of `y` over the k-th strongest of the others, less one where a tie is theirs: how many votes it could
    lose and stay among the first k; below zero, how many it lacks.
    """
    spare = -sum(counts) - 2
    while place([n - (spare + 1) * (j == y) for j, n in enumerate(counts)], y) < k:
        spare += 1
    return spare


def ballots(classes: int, most: int, unit: int = 1, *, all_of_it: bool = False) -> list[tuple[int, ...]]:
    """What one ablation can add to the classes: up to `unit` to each and `most` in all, or just as much in all."""
    cast = product(range(unit + 1), repeat=classes)
    return [row for row in cast if (sum(row) == most if all_of_it else sum(row) <= most)]


def recasts(votes, controlled: frozenset[int], choices: list[tuple[int, ...]], close=None) -> set[tuple[int, ...]]:
    """Every count reachable when each controlled ablation casts one of `choices`, and untouched close votes are cast
    or not.
    """
    classes = range(len(votes[0]))
    reached = {(0,) * len(votes[0])}
    for n, row in enumerate(votes):
        near = [close is not None and close[n][k] for k in classes]
        cast = choices if n in controlled else product(*((0, 1) if near[k] else (int(row[k]),) for k in classes))
        reached = {tuple(map(sum, zip(counts, own, strict=True))) for own in list(cast) for counts in reached}
    return reached

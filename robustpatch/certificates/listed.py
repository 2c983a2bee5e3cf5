"""Threats as a proof file holds them: rectangles by their sides, all others pixel by pixel, by runs and places."""

from __future__ import annotations

from collections import Counter

import numpy as np

from robustpatch.ablations.base import Ablation
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.proof.masks import check_drawn, check_places, check_unions
from robustpatch.threats.base import Patches, Placements, Threat

Claimed = list[int] | dict[str, list[list[int]]]


def claimed(
    threat: Threat, ablation: Ablation, image_size: tuple[int, int]
) -> tuple[list[Claimed], dict[str, np.ndarray] | None]:
    """The `threats` of the claim, and the arrays `runs` and `places`; None where all are rectangles.

    Raises `InvalidInput` for what the verifier would not check: more masks, places or unions than it draws.
    """
    numbers: dict[Placements, int] = {}
    found: list[Claimed] = []
    for one in threat.threats:
        families = Counter(one.families(*image_size))
        _check_checkable(one, families, ablation, image_size)
        (first, count), *others = families.items()
        if first.rectangle is not None and not others:
            found.append([*first.rectangle, count])
        else:
            own = [(numbers.setdefault(family, len(numbers)), many) for family, many in families.items()]
            found.append({"families": [list(pair) for pair in sorted(own)]})
    return found, _arrays(list(numbers)) if numbers else None


def _check_checkable(
    threat: Patches, families: Counter[Placements], ablation: Ablation, image_size: tuple[int, int]
) -> None:
    n = ablation.count(*image_size)
    try:
        if any(family.rectangle is None for family in families) or len(families) > 1:
            check_drawn(str(ablation), n, *image_size)
            check_places(str(threat), max(map(len, families)), n)
        if threat.count > 1:
            check_unions([(len(ablation.touched_at(one).sizes), many) for one, many in families.items()], n)
    except ValueError as error:
        raise InvalidInput(
            f"threat is {one_line(threat, 80)}, and no proof against it by {ablation} on {image_size[0]}x"
            f"{image_size[1]} pixels could be checked: {error}; certify fewer patches, or with bands or larger strides"
        ) from error


def _arrays(families: list[Placements]) -> dict[str, np.ndarray]:
    """`runs` and `places` as `robustpatch.proof.footprints` reads them: each family has sets of its own, in order."""
    runs, places, known = [], [], 0
    for number, family in enumerate(families):
        sets, where = family.sets()
        used, own = np.unique(where[:, 0].numpy(), return_inverse=True)
        runs += [(known + at, *run) for at, index in enumerate(used) for run in _runs(sets[index].numpy())]
        listed = np.stack([np.full(len(own), number), known + own, *where[:, 1:].numpy().T], axis=1)
        places.append(np.unique(listed, axis=0))
        known += len(used)
    return {"runs": np.array(runs), "places": np.concatenate(places)}


def _runs(pixels: np.ndarray) -> list[tuple[int, int, int]]:
    """The runs (row, start, length) of a set of pixels [h,w], row by row."""
    edges = np.diff(np.pad(pixels.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    (row, start), (_, stop) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    return list(zip(row.tolist(), start.tolist(), (stop - start).tolist(), strict=True))

"""Proofs of double masking (PatchCleanser): the class named under every union of two views, and by how much.

The archive holds `named` [B,U], the class under each union, `lead` [B,U], by how much its logit exceeds every other's;
`prediction`, `certified`; and `claim`, a JSON text: image_size, threats, classes, guard, `count`, the number of masks
that make a view, and, where masks are rectangles, `rows` and `columns` of their upper left corners, `height` and
`width`. Other masks are in the array `hidden` [n,ceil(H·W/8)]: the bits of each one's pixels, row by row. Views are all
choices of `count` masks in lexicographic order, unions these and all that two of them make, by size, then in that
order. Shapes that are no rectangles are in `runs` and `places`, as in `robustpatch.proof.footprints`.

A class is proved where for every choice of places some view hides all patches, and with that view every second one
leaves the class ahead by more than twice the guard: then double masking names it whatever the patches show (see
`robustpatch.defenses.double_masking.certify`, which this shares no code with). Needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np

from robustpatch.proof.file import LISTED, strict_object
from robustpatch.proof.footprints import Threat, brief, listed, threats, whole_numbers
from robustpatch.storage.npz import Spec, read_arrays

_ARRAYS: dict[str, Spec] = {
    "named": {"<i4": 2},
    "lead": {"<f4": 2},
    "prediction": {"<i8": 1},
    "certified": {"|b1": 1},
    "claim": {"|u1": 1},
}
_OUTLINES: dict[str, Spec] = {"hidden": {"|u1": 2}}
_FIELDS = {"image_size", "threats", "classes", "guard", "count"}
_BOXES = {"rows", "columns", "height", "width"}
_MOST_VIEWS = 2**10
_MOST_PIXELS = 2**26  # of all masks
_MOST_CELLS = 2**28  # pixels of all views
_MOST_CHOICES = 2**18


@dataclass(frozen=True)
class MaskedFile:
    """Of B images: Int[B] `prediction`, Bool[B] `certified`, and what is claimed against which threats."""

    prediction: np.ndarray
    certified: np.ndarray
    threats: tuple[Threat, ...]
    image_size: tuple[int, int]
    classes: int
    guard: float
    named: np.ndarray
    lead: np.ndarray


def check(content: bytes) -> tuple[MaskedFile, list[str]]:
    """The claims of the file, and those that do not follow, a line each. Raises `ValueError` where it is no proof."""
    arrays = read_arrays(content, _ARRAYS, LISTED, _OUTLINES)
    claim = strict_object(arrays["claim"].tobytes()[: 2**16])
    fields = _FIELDS if "hidden" in arrays else _FIELDS | _BOXES
    if claim.keys() != fields or type(claim["classes"]) is not int or claim["classes"] < 2:
        raise ValueError(f"the claim has the fields {brief(sorted(claim))}; {', '.join(sorted(fields))} are needed")
    guard = claim["guard"]
    if type(guard) not in (int, float) or not 0 <= guard < 2**20:
        raise ValueError(f"guard is {brief(guard)}; a number of at least 0 is needed")
    size = whole_numbers("image_size", claim["image_size"], 2, least=(1, 1))
    image_size = size[0], size[1]
    families = listed(arrays["runs"], arrays["places"], image_size) if "runs" in arrays else []
    against = threats(claim["threats"], image_size, families)
    hidden = _outlines(arrays["hidden"], image_size) if "hidden" in arrays else _boxes(claim, image_size)
    (count,) = whole_numbers("count", [claim["count"]], 1, least=(1,))
    if count > min(len(hidden), 8) or comb(len(hidden), count) > _MOST_VIEWS:
        raise ValueError(f"views of {count} of {len(hidden)} masks are more than are checked")
    views, pair = _views(len(hidden), count)
    named, lead, prediction, certified = (arrays[name] for name in ("named", "lead", "prediction", "certified"))
    many, unions = len(prediction), int(pair.max()) + 1
    if not many or named.shape != (many, unions) or lead.shape != named.shape or len(certified) != many:
        raise ValueError(f"named and lead are {list(named.shape)} and {list(lead.shape)}; [{many}, {unions}] is needed")
    if (
        ((prediction < 0) | (prediction >= claim["classes"]))[certified].any()
        or not (lead >= 0).all()
        or np.isinf(lead).any()
    ):
        raise ValueError("a certified image is of no class, or a lead no number of at least 0")
    file = MaskedFile(prediction, certified, against, image_size, claim["classes"], float(guard), named, lead)
    hiding = np.concatenate([_hiding(threat, hidden, views) for threat in dict.fromkeys(against)])
    wrong = []
    for i in np.nonzero(certified)[0]:
        firm = (named[i] == prediction[i]) & (lead[i].astype(np.float64) > 2 * guard)
        steady = firm[pair].all(axis=1)
        if not (hiding & steady).any(axis=1).all():
            wrong.append(f"image {i}: certified, but some places are hidden by no view that stays with {prediction[i]}")
    return file, wrong


def _boxes(claim: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The pixels that each rectangle hides, [n,H,W]. Raises `ValueError`."""
    rows, columns = (
        whole_numbers(name, claim[name], len(claim[name]), least=(0,) * len(claim[name]))
        if isinstance(claim[name], list) and 0 < len(claim[name]) <= 2**10
        else ()
        for name in ("rows", "columns")
    )
    height, width = whole_numbers("the masks", [claim["height"], claim["width"]], 2, least=(1, 1))
    inside = rows and columns and max(rows) + height <= size[0] and max(columns) + width <= size[1]
    number = len(rows) * len(columns)
    if not inside or number * size[0] * size[1] > _MOST_PIXELS:
        raise ValueError("the masks lie outside of the image, or are more than are checked")
    hidden = np.zeros((number, *size), bool)
    for mask, (row, column) in zip(hidden, product(rows, columns), strict=True):
        mask[row : row + height, column : column + width] = True
    return hidden


def _outlines(packed: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels that each mask hides, [n,H,W]. Raises `ValueError`."""
    number, pixels = len(packed), size[0] * size[1]
    if not number or number * pixels > _MOST_PIXELS or packed.shape[1] != -(-pixels // 8):
        raise ValueError(
            f"hidden is {list(packed.shape)}, of images of {pixels} pixels; [n, {-(-pixels // 8)}] is needed"
        )
    return np.unpackbits(packed, axis=1, count=pixels).view(bool).reshape(number, *size)


def _views(masks: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The masks of each view [V,count], and the number of the union that two views make, [V,V]."""
    views = list(combinations(range(masks), count))
    made = {frozenset(one + other) for one in views for other in views}
    order = sorted(made, key=lambda union: (len(union), sorted(union)))
    number = {union: n for n, union in enumerate(order)}
    pair = [[number[frozenset(one + other)] for other in views] for one in views]
    return np.array(views), np.array(pair)


def _hiding(threat: Threat, hidden: np.ndarray, views: np.ndarray) -> np.ndarray:
    """The distinct sets [S,V] of views that hide all patches of a threat, over all choices of their places."""
    chosen = {(1 << len(views)) - 1}
    for patch, count in threat:
        if views.size * hidden[0].size > _MOST_CELLS:
            raise ValueError(f"{len(views)} views of images of so many pixels are more than are checked")
        holds = ~patch.hits(~hidden)  # a mask holds what no pixel outside of it touches
        single = {int.from_bytes(row.tobytes(), "big") for row in np.packbits(holds[:, views].any(axis=2), axis=1)}
        pad = -len(views) % 8
        single = {one >> pad for one in single}
        for _ in range(count):
            if len(chosen) * len(single) > _MOST_CHOICES:
                raise ValueError("several patches have more choices of places than are checked")
            chosen = {one & other for one in chosen for other in single}
    number = np.arange(len(views))[::-1]
    return np.array([[one >> int(at) & 1 for at in number] for one in sorted(chosen)], bool)

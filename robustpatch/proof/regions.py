"""Proofs by bounds (IBP): every place of the patch lies in a region, of which a bound says that the class leads there.

The archive holds, for each region, `image` and `threat` (their numbers), `corners` (first and last row, first and last
column of the patch's upper left corner), and `bound`, by which the class `leader` leads every other at least, whatever
the patch shows; and `prediction`, `certified` and `claim`, a JSON text: image_size, threats (rectangles), classes. That
a network has these bounds is not in the file: it takes the network to see that. Needs numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robustpatch.proof.file import strict_object
from robustpatch.proof.footprints import Rectangle, Threat, brief, threats, whole_numbers
from robustpatch.storage.npz import Spec, read_arrays

_ARRAYS: dict[str, Spec] = {
    "image": {"<i4": 1},
    "threat": {"<i4": 1},
    "corners": {"<i4": 2},
    "bound": {"<f8": 1},
    "leader": {"<i4": 1},
    "prediction": {"<i8": 1},
    "certified": {"|b1": 1},
    "claim": {"|u1": 1},
}
_MOST_CELLS = 2**30  # places of all images and threats


@dataclass(frozen=True)
class RegionFile:
    """Of B images: Int[B] `prediction`, Bool[B] `certified`, and what is claimed against which threats."""

    prediction: np.ndarray
    certified: np.ndarray
    threats: tuple[Threat, ...]
    image_size: tuple[int, int]
    classes: int
    arrays: dict[str, np.ndarray]

    def regions(self, i: int) -> dict[tuple[int, ...], float]:
        """The bounds of an image by threat and corners."""
        own = self.arrays["image"] == i
        at = np.concatenate([self.arrays["threat"][own, None], self.arrays["corners"][own]], axis=1)
        return dict(zip(map(tuple, at.tolist()), self.arrays["bound"][own].tolist(), strict=True))


def check(content: bytes) -> tuple[RegionFile, list[str]]:
    """The claims of the file, and those that do not follow, a line each. Raises `ValueError` where it is no proof."""
    arrays = read_arrays(content, _ARRAYS)
    claim = strict_object(arrays["claim"].tobytes()[: 2**16])
    if claim.keys() != {"image_size", "threats", "classes"} or type(claim["classes"]) is not int:
        raise ValueError(f"the claim has the fields {brief(sorted(claim))}; image_size, threats and classes are needed")
    size = whole_numbers("image_size", claim["image_size"], 2, least=(1, 1))
    image_size, against = (size[0], size[1]), threats(claim["threats"], (size[0], size[1]), [])
    image, number, corners, bound, leader = (arrays[n] for n in ("image", "threat", "corners", "bound", "leader"))
    prediction, certified = arrays["prediction"], arrays["certified"]
    many = len(prediction)
    shapes = {len(image), len(number), len(corners), len(bound), len(leader)}
    if len(certified) != many or len(shapes) > 1 or corners.shape[1] != 4 or not many:
        raise ValueError("its arrays are of different lengths, or of no image")
    if len(image) and not (
        image.min() >= 0 and image.max() < many and number.min() >= 0 and number.max() < len(against)
    ):
        raise ValueError("a region is of an image or a threat that there is not")
    if np.isnan(bound).any():
        raise ValueError("a bound is no number")
    if claim["classes"] < 2 or ((prediction < 0) | (prediction >= claim["classes"])).any():
        raise ValueError(f"predictions are not all classes of {claim['classes']}")
    if many * len(against) * size[0] * size[1] > _MOST_CELLS:
        raise ValueError("it has more places than are checked")
    file, wrong = RegionFile(prediction, certified, against, image_size, claim["classes"], arrays), list[str]()
    for n, threat in enumerate(against):
        ((patch, count), *others) = threat
        if not isinstance(patch, Rectangle) or count > 1 or others:
            raise ValueError("a threat is no single rectangle; the bounds of others are not checked here")
        places = size[0] - patch.height + 1, size[1] - patch.width + 1
        first, last, left, right = corners[number == n].T.astype(np.int64)
        if len(first) and (
            min(first.min(), left.min()) < 0
            or (last >= places[0]).any()
            or (right >= places[1]).any()
            or (last < first).any()
            or (right < left).any()
        ):
            raise ValueError(f"a region has corners outside of {places[0]}x{places[1]} places, or is empty")
        order = np.nonzero((number == n) & (bound >= 0))[0]
        order = order[np.argsort(image[order], kind="stable")]
        ends = np.searchsorted(image[order], np.arange(many + 1))
        for i in np.nonzero(certified)[0]:
            own = order[ends[i] : ends[i + 1]]
            if not _covered(corners[own[leader[own] == prediction[i]]], places):
                wrong.append(f"image {i}: certified, but not every place lies in a region that is bounded")
    return file, wrong


def _covered(corners: np.ndarray, places: tuple[int, int]) -> bool:
    """Every place lies in some region: each adds one at its corner, which running sums spread over it."""
    marks = np.zeros((places[0] + 1, places[1] + 1), np.int64)
    first, last, left, right = corners.T
    for rows, columns, sign in (
        (first, left, 1),
        (last + 1, left, -1),
        (first, right + 1, -1),
        (last + 1, right + 1, 1),
    ):
        np.add.at(marks, (rows, columns), sign)
    return bool((marks.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0).all())

"""Proofs that hold with a confidence: how often ablations drawn at random named the class.

The archive holds `selected` and `counted` [B,K], votes of the ablations that chose the class and of the others that
count for it; `keys` [B,32], by which with `seed` they were drawn; `prediction`, `certified`; and `claim`, a JSON text:
image_size, threats (rectangles), ablation, or "sparse:K" of K pixels, selection and estimation (how many were drawn of
each), alpha, seed and guard. A class of which `hits` of n were counted is certified with confidence 1 - alpha where
P(Binomial(n, 1/2 + τ) >= hits) <= alpha, τ being the largest chance that a drawn ablation meets the patches (Clopper
and Pearson). That the draws were made by the seed takes the model to see. Needs numpy alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import comb, exp, lgamma, log, log1p

import numpy as np

from robustpatch.proof.file import strict_object
from robustpatch.proof.footprints import Rectangle, Threat, brief, threats, whole_numbers
from robustpatch.proof.masks import masks, touched_sets
from robustpatch.storage.npz import Spec, read_arrays

_ARRAYS: dict[str, Spec] = {
    "selected": {"<i8": 2},
    "counted": {"<i8": 2},
    "keys": {"|u1": 2},
    "prediction": {"<i8": 1},
    "certified": {"|b1": 1},
    "claim": {"|u1": 1},
}
_FIELDS = {"image_size", "threats", "ablation", "selection", "estimation", "alpha", "seed", "guard"}
_MOST_DRAWN = 2**24


@dataclass(frozen=True)
class DrawsFile:
    """Of B images: Int[B] `prediction`, Bool[B] `certified`, and what is claimed against which threats."""

    prediction: np.ndarray
    certified: np.ndarray
    threats: tuple[Threat, ...]
    image_size: tuple[int, int]
    classes: int
    selection: int
    estimation: int
    selected: np.ndarray
    counted: np.ndarray
    keys: np.ndarray


def check(content: bytes) -> tuple[DrawsFile, list[str]]:
    """The claims of the file, and those that do not follow, a line each. Raises `ValueError` where it is no proof."""
    arrays = read_arrays(content, _ARRAYS)
    claim = strict_object(arrays["claim"].tobytes()[: 2**16])
    if claim.keys() != _FIELDS or not isinstance(claim["ablation"], str):
        raise ValueError(f"the claim has the fields {brief(sorted(claim))}; {', '.join(sorted(_FIELDS))} are needed")
    size = whole_numbers("image_size", claim["image_size"], 2, least=(1, 1))
    image_size = size[0], size[1]
    selection, estimation, _ = whole_numbers(
        "selection, estimation and seed",
        [claim[name] for name in ("selection", "estimation", "seed")],
        3,
        least=(1, 1, -(2**62)),
    )
    alpha, guard = claim["alpha"], claim["guard"]
    if type(alpha) is not float or not 0 < alpha < 1 or type(guard) not in (int, float) or not 0 <= guard < 1:
        raise ValueError(f"alpha is {brief(alpha)} and guard {brief(guard)}; numbers in (0, 1) and [0, 1) are needed")
    if max(selection, estimation) > _MOST_DRAWN:
        raise ValueError(f"{max(selection, estimation)} draws are more than are checked")
    selected, counted, prediction, certified = (arrays[n] for n in ("selected", "counted", "prediction", "certified"))
    many = len(prediction)
    if not many or selected.shape != counted.shape or len(selected) != many or len(certified) != many:
        raise ValueError("its arrays are of different lengths, or of no image")
    if arrays["keys"].shape != (many, 32) or selected.shape[1] < 2:
        raise ValueError("a key of 32 bytes for each image, and two classes or more, are needed")
    for votes, number in ((selected, selection), (counted, estimation)):
        if votes.min() < 0 or (votes.max() > number) or (votes.sum(axis=1) > number).any():
            raise ValueError(f"votes are below 0, or more than the {number} that were drawn")
    against = threats(claim["threats"], image_size, [])
    chance = max(_met(claim["ablation"], threat, image_size) for threat in against)
    least = _least_hits(estimation, 0.5 + float(chance), alpha)
    drawn = selection, estimation
    file = DrawsFile(
        prediction, certified, against, image_size, selected.shape[1], *drawn, selected, counted, arrays["keys"]
    )
    wrong = []
    for i in np.nonzero(certified)[0]:
        c = int(selected[i].argmax())
        if prediction[i] != c:
            wrong.append(f"image {i}: prediction {prediction[i]} is not the first class with the most votes selected")
        elif counted[i, c] < least:
            wrong.append(f"image {i}: certified by {counted[i, c]} votes of {estimation}, and {least} are needed")
    return file, wrong


def _met(ablation: str, threat: Threat, size: tuple[int, int]) -> Fraction:
    """The largest chance that an ablation drawn at random keeps a pixel under the patches."""
    sparse = re.fullmatch(r"sparse:([1-9][0-9]{0,6})", ablation)
    if sparse is None:
        sets = touched_sets(kept := masks(ablation, *size), threat)
        return Fraction(int(sets.sum(axis=1).max()), len(kept))
    pixels, keep, area = size[0] * size[1], int(sparse[1]), 0
    for patch, count in threat:
        if not isinstance(patch, Rectangle) or pixels > 2**16:
            raise ValueError("a sparse ablation's proof is checked for rectangles, on up to 65,536 pixels")
        area += count * patch.height * patch.width
    if keep > pixels:
        raise ValueError(f"the ablation {ablation!r} does not fit images of {size[0]}x{size[1]}")
    return 1 - Fraction(comb(max(0, pixels - area), keep), comb(pixels, keep))


def _least_hits(number: int, share: float, alpha: float) -> int:
    """The fewest hits of so many draws that a chance of `share` reaches with a chance of at most alpha."""
    if share >= 1:
        return number + 1
    total, found = 0.0, number + 1
    # A hair below alpha, for what rounding makes of the sum.
    while found > 0:
        k = found - 1
        weight = lgamma(number + 1) - lgamma(k + 1) - lgamma(number - k + 1)
        total += exp(weight + k * log(share) + (number - k) * log1p(-share))
        if total > alpha * (1 - 1e-9):
            break
        found = k
    return found

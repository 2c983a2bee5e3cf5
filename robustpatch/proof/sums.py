"""Proofs of robust masking (PatchGuard): votes, or scores in units, of which the loudest window is not heard.

The archive is a proof file's (`robustpatch.proof.verifier`) with one array more, `masking`, a JSON text: `window`,
[height, width] of the patch whose sets of ablations are the windows, and `threshold`, a fraction [t, of], 0 <= t <= of.
For each class the window with the largest sum is left out if that is more than t/of of the sum over all ablations.
Needs numpy alone, and shares no code with the certificates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robustpatch.proof.file import ARRAYS, LISTED, ProofFile, proof_of, strict_object
from robustpatch.proof.footprints import Rectangle, brief, whole_numbers
from robustpatch.proof.masks import masks, touched_sets
from robustpatch.proof.verifier import unproved
from robustpatch.storage.npz import read_arrays

_MOST_PAIRS = 2**20  # of a set and a window
_MOST_WORK = 2**38  # additions: minutes
_CELLS = 2**22  # worked on at once


@dataclass(frozen=True)
class Windows:
    """`members` [V,N]: the sets of ablations of which one may be left out; above `share`, t of `of`, of the sum."""

    members: np.ndarray
    t: int
    of: int

    def left(self, cast: np.ndarray) -> np.ndarray:
        """The sums that are left, [b,K], of contributions [b,N,K]."""
        inside = np.einsum("vn,bnk->bvk", self.members.astype(np.int64), cast).max(axis=1)
        total = cast.sum(axis=1)
        return np.where(inside * self.of > self.t * total, total - inside, total)

    def worst(self, file: ProofFile, sets: np.ndarray) -> np.ndarray:
        """The least lead of each image's winner over any rival, whatever the ablations of one of `sets` contribute."""
        pairs = len(sets) * len(self.members)
        if pairs > _MOST_PAIRS or pairs * file.shape[0] * file.shape[1] > _MOST_WORK:
            raise ValueError(f"{len(sets)} sets and {len(self.members)} windows are more than are checked")
        worst, some = [], max(1, _CELLS // (len(self.members) * file.shape[2]))
        for i in range(file.shape[0]):
            cast, close = (one[0] for one in file.votes(slice(i, i + 1)))
            least = np.maximum(cast - close - file.slack, 0)
            most = np.minimum(np.maximum(cast, close) + file.slack, file.unit)
            c = int(self.left(cast[None])[0].argmax())
            parts = (sets[first : first + some] for first in range(0, len(sets), some))
            worst.append(min(int(self._leads(least[:, c], most, c, part, file.unit).min()) for part in parts))
        return np.array(worst)

    def _leads(self, own: np.ndarray, most: np.ndarray, c: int, sets: np.ndarray, unit: int) -> np.ndarray:
        """The least lead of class c, Int[S], whatever the ablations of each of these sets contribute; -1 where they are
        all that there are: a patch that touches every ablation can silence them.
        """
        inside, free = self.members, ~sets
        shared, number = _product(sets, inside.T), np.arange(most.shape[1])
        # What a patch can make of each window, at most, and what is outside of both, at least: is the window left out?
        loud = _product(free * most[:, c], inside.T) + unit * shared
        outside = _product(free * own, ~inside.T)
        kept = np.where(loud * self.of > self.t * (loud + outside), outside, (free * own).sum(axis=1)[:, None])
        kept = np.minimum(kept.min(axis=1), (free * own).sum(axis=1))
        rivals = _product(free, most) + unit * sets.sum(axis=1)[:, None]
        if self.t < self.of:
            holding = shared == sets.sum(axis=1)[:, None]
            left = np.where(holding[..., None], _product(~inside, most), np.iinfo(np.int64).max // 2**17).min(axis=1)
            rivals = np.minimum(rivals, left * self.of // (self.of - self.t))
        leads = (kept[:, None] - rivals - (number < c))[:, number != c].min(axis=1)
        return np.where(sets.all(axis=1), np.minimum(leads, -1), leads)


def _product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sums of fewer than 2^20 numbers of up to 2^16: whole numbers below 2^53, which float64 adds exactly."""
    return np.matmul(one.astype(np.float64), other.astype(np.float64)).astype(np.int64)


def check(content: bytes) -> tuple[ProofFile, list[str]]:
    """The claims of the file, and those that do not follow, a line each. Raises `ValueError` where it is no proof."""
    arrays = read_arrays(content, {**ARRAYS, "masking": {"|u1": 1}}, LISTED)
    given = strict_object(arrays.pop("masking").tobytes()[: 2**10])
    if given.keys() != {"window", "threshold"}:
        raise ValueError(f"masking has the fields {brief(sorted(given))}; window and threshold are needed")
    file = proof_of(arrays)
    height, width = whole_numbers("window", given["window"], 2, least=(1, 1))
    t, of = whole_numbers("threshold", given["threshold"], 2, least=(0, 1))
    if height > file.image_size[0] or width > file.image_size[1] or t > of or of > 2**16:
        raise ValueError(f"masking is {brief(given)}: a window in the image and a share in [0, 1] are needed")
    kept = masks(file.ablation, *file.image_size)
    if len(kept) != file.shape[1]:
        return file, [f"the votes are of {file.shape[1]} ablations, but {file.ablation} has {len(kept)}"]
    windows = Windows(touched_sets(kept, ((Rectangle(height, width), 1),)), t, of)
    if any(sum(count for _, count in threat) > 1 for threat in file.threats):
        return file, ["robust masking leaves one window out, and more than one patch is claimed"]

    def winners(file: ProofFile) -> np.ndarray:
        each = (file.votes(slice(i, i + 1))[0] for i in range(file.shape[0]))
        return np.array([int(windows.left(cast)[0].argmax()) for cast in each])

    return file, unproved(file, windows.worst, winners)

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

_MOST_PAIRS = 2**16  # of a set and a window


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
        if len(sets) * len(self.members) > _MOST_PAIRS:
            raise ValueError(f"{len(sets)} sets and {len(self.members)} windows are more than are checked")
        worst = []
        for i in range(file.shape[0]):
            cast, close = (some[0] for some in file.votes(slice(i, i + 1)))
            least = np.maximum(cast - close - file.slack, 0)
            most = np.minimum(np.maximum(cast, close) + file.slack, file.unit)
            c = int(self.left(cast[None])[0].argmax())
            worst.append(min(self._lead(least[:, c], most, c, touched, file.unit) for touched in sets))
        return np.array(worst)

    def _lead(self, own: np.ndarray, most: np.ndarray, c: int, touched: np.ndarray, unit: int) -> int:
        if touched.all():
            return -1  # a patch that touches every ablation can silence all of them
        kept = int(own[~touched].sum())
        for window in self.members:
            # What the patch can make of this window, at most, and what is outside of it, at least: is it left out then?
            outside = int(own[~touched & ~window].sum())
            loud = int(most[window & ~touched, c].sum()) + unit * int((window & touched).sum())
            if loud * self.of > self.t * (loud + outside):
                kept = min(kept, outside)
        rivals = most[~touched].sum(axis=0) + unit * int(touched.sum())
        holding = [window for window in self.members if not (touched & ~window).any()]
        if holding and self.t < self.of:
            left = np.min([most[~window].sum(axis=0) for window in holding], axis=0)
            rivals = np.minimum(rivals, left * self.of // (self.of - self.t))
        number = np.arange(len(rivals))
        lead = kept - rivals - (number < c)
        return int(lead[number != c].min())


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

"""Proof files, read strictly: every field there, of its type and in its range, and nothing else.

See `robustpatch.proof.verifier` for what the file means. Needs numpy alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np

from robustpatch.proof.footprints import Threat, brief, listed, threats, whole_numbers
from robustpatch.storage.npz import Spec, read_arrays

UNITS = 2**16  # of a score that is summed: its range
_MOST_CLAIM = 2**16  # bytes of the JSON text
ARRAYS: dict[str, Spec] = {
    "cast": {"|u1": 1, "<i4": 3},
    "close": {"|u1": 1},
    "shape": {"<i8": 1},
    "prediction": {"<i8": 1},
    "certified": {"|b1": 1},
    "margin": {"<i8": 1},
    "claim": {"|u1": 1},
}
LISTED: dict[str, Spec] = {"runs": {"<i4": 2}, "places": {"<i4": 2}}  # of patches that are no rectangles
_FIELDS = ("ablation", "image_size", "threats", "method", "guard")
_VOTES = {"unit": 1, "slack": 0}  # what a claim without these two means


@dataclass(frozen=True)
class ProofFile:
    """B images, N ablations, K ≥ 2 classes. `cast` and `close` are bits of [B,N,K], eight to a byte; where `unit` is
    more than 1, `cast` is int32 [B,N,K] in 0, …, `unit`. prediction: Int[B] in 0, …, K - 1. certified: Bool[B].
    margin: Int[B]. A threat is the patches that are there at the same time, each with its count.
    """

    ablation: str
    image_size: tuple[int, int]
    threats: tuple[Threat, ...]
    method: str
    guard: float
    unit: int
    slack: int
    shape: tuple[int, int, int]
    cast: np.ndarray
    close: np.ndarray
    prediction: np.ndarray
    certified: np.ndarray
    margin: np.ndarray

    def votes(self, image: slice) -> tuple[np.ndarray, np.ndarray]:
        """`cast` and `close` of these images, [b,N,K]; integers, so that they can be summed."""
        cast = self.cast[image] if self.unit > 1 else self._bits(self.cast, image)
        return cast.astype(np.int64), self._bits(self.close, image)

    def number_close(self) -> int:
        """The number of votes that are marked close."""
        return sum(int(np.unpackbits(self.close[a : a + 2**20]).sum()) for a in range(0, len(self.close), 2**20))

    def _bits(self, packed: np.ndarray, image: slice) -> np.ndarray:
        each, (start, stop, _) = prod(self.shape[1:]), image.indices(self.shape[0])
        first = start * each // 8
        bits = np.unpackbits(packed[first : -(-stop * each // 8)])[start * each - 8 * first :]
        return bits[: (stop - start) * each].reshape(stop - start, *self.shape[1:]).astype(np.int64)


def read(path: str | Path | bytes) -> ProofFile:
    """The content of a file, or of its bytes. Raises `ValueError` (or an error of `zipfile`, `zlib` or the operating
    system) for one that is no proof: that cannot be read, or whose fields are missing, too many, of other types or
    shapes, or impossible. What is returned may still be false.
    """
    return proof_of(read_arrays(path, ARRAYS, LISTED))


def proof_of(arrays: dict[str, np.ndarray]) -> ProofFile:
    """The proof that these arrays are. Raises `ValueError`."""
    claim = _claim(arrays["claim"].tobytes())
    size = claim["image_size"]
    families = listed(arrays.pop("runs"), arrays.pop("places"), size) if "runs" in arrays else []
    claim["threats"] = threats(claim["threats"], size, families)
    shape = tuple(arrays["shape"].tolist())
    if len(shape) != 3 or min(shape) < 1 or shape[2] < 2:
        raise ValueError(f"shape is {list(shape)}; [images, ablations, classes] are needed, with two classes or more")
    number, scored = prod(shape), claim["unit"] > 1
    packed = -(-number // 8)
    for name in ("cast", "close"):
        array = arrays[name]
        expected = ("int32", shape) if scored and name == "cast" else ("uint8", (packed,))
        if (array.dtype.name, array.shape) != expected:
            raise ValueError(
                f"{name} is {array.dtype.name} {list(array.shape)}, but for shape {list(shape)} and unit "
                f"{claim['unit']} it is {expected[0]} {list(expected[1])}"
            )
        if array.dtype == np.uint8 and number % 8 and int(array[-1]) & (255 >> number % 8):
            raise ValueError(f"{name} has bits behind the last vote")
    for name in ("prediction", "certified", "margin"):
        if arrays[name].shape != shape[:1]:
            raise ValueError(f"{name} has shape {list(arrays[name].shape)}; [{shape[0]}] is needed, one for each image")
    if scored and (arrays["cast"].min() < 0 or arrays["cast"].max() > claim["unit"]):
        raise ValueError(f"cast has scores outside of 0 to {claim['unit']} units")
    if scored and arrays["close"].any():
        raise ValueError("close marks votes, but scores are summed, of which none turns over")
    votes: dict[str, Any] = {name: array for name, array in arrays.items() if name not in ("claim", "shape")}
    return ProofFile(**claim, shape=shape, **votes)


def check_length(claim: bytes) -> None:
    """Refuse with `ValueError` a longer text than is read."""
    if len(claim) > _MOST_CLAIM:
        raise ValueError(f"the claim has {len(claim)} bytes; at most {_MOST_CLAIM} are read")


def strict_object(content: bytes) -> dict[str, Any]:
    """The fields of a JSON object, no name twice and no number that is none. Raises `ValueError` for anything else."""
    try:
        found = json.loads(
            content.decode(), object_pairs_hook=_once, parse_constant=_refuse, parse_int=_whole, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("the claim is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("the claim is no table of fields")
    return found


def _claim(content: bytes) -> dict[str, Any]:
    """The claim's fields, each of its type and in its range, but for the threats."""
    check_length(content)
    found = strict_object(content)
    claim = {**_VOTES, **found}
    if set(claim) != {*_FIELDS, *_VOTES}:
        raise ValueError(f"the claim has the fields {brief(sorted(found))}; {', '.join([*_FIELDS, *_VOTES])} are known")
    if not isinstance(claim["ablation"], str) or claim["method"] not in ("exact", "margin"):
        raise ValueError(f"ablation is {brief(claim['ablation'])} and method {brief(claim['method'])}")
    claim["image_size"] = whole_numbers("image_size", claim["image_size"], 2, least=(1, 1))
    for name in ("unit", "slack"):
        if type(claim[name]) is not int:
            raise ValueError(f"{name} is {brief(claim[name])}, which is no whole number")
    if type(claim["guard"]) not in (int, float):
        raise ValueError(f"guard is {brief(claim['guard'])}, which is no number")
    claim["guard"] = float(claim["guard"])
    unit, slack, guard = (claim[name] for name in ("unit", "slack", "guard"))
    # Another unit is another adversary, and a negative slack counts for the claim what has to count against it.
    if unit not in (1, UNITS) or not 0 <= slack <= (unit if unit > 1 else 0) or not 0 <= guard < 1:
        raise ValueError(
            f"unit is {unit}, slack {slack} and guard {guard}; a unit of 1 without slack or of {UNITS} with 0 to "
            f"{UNITS}, and a guard in [0, 1) are needed"
        )
    return claim


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"the claim names a field twice: {brief([name for name, _ in pairs])}")
    return dict(pairs)


def _refuse(text: str) -> float:
    raise ValueError(f"the claim has {text}, which is no number")


def _whole(text: str) -> int:
    if len(text) > 18:
        raise ValueError(f"the claim has the whole number {text[:40]}, larger than any in a proof")
    return int(text)


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"the claim has {text[:40]}, which is no finite number")
    return float(text)

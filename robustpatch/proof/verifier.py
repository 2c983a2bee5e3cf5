"""A certificate on disk, and a verifier that trusts nothing but the votes in it.

`python -m robustpatch.proof verify FILE` says what the file claims and what it assumes, and exits with

- 0 when every claim follows from the votes in the file;
- 1 when one does not: a line for each;
- 2 when the file is no proof: missing, damaged, malformed, impossible, or too large to be checked; one line says why.

Verification needs numpy alone and shares no code with the certificates: it draws every mask pixel by pixel, puts
every patch on each of its places, and checks the inequality for every rival. Its memory and time are bounded, whatever
the file holds. That a model casts these votes is not in the file: make them again for that.

The file is a numpy archive: `cast`, `close` (bit-packed [B,N,K]), `shape`, `prediction`, `certified`, `margin` and
`claim`, a JSON text: ablation, image_size, threats, method, guard, unit, slack. Where scores are summed, `cast` are
whole units, of which one ablation adds 0 to `unit` to each class, and rounding moves `slack`. Patches that are not
rectangles are listed pixel by pixel in `runs` and `places`; see `robustpatch.proof.footprints`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from robustpatch.proof.file import ProofFile, check_length, read
from robustpatch.proof.footprints import Listed
from robustpatch.proof.masks import masks, touched_sets

_MOST_WORK = 2**39  # additions: minutes
_MOST_VOTES = 2**24  # of one image
_CELLS = 2**23  # numbers worked on at once
_DRAWN = 8  # shapes that are shown


def write(
    path: str | Path,
    *,
    cast: np.ndarray,
    close: np.ndarray,
    prediction: np.ndarray,
    certified: np.ndarray,
    margin: np.ndarray,
    listed: Mapping[str, np.ndarray] | None = None,
    **claim: Any,
) -> None:
    """Save votes and claims to `path`; see `Certificate.save`. `listed` are `runs` and `places`, where there are some.

    Raises `ValueError` for a claim too long to be read.
    """
    from robustpatch.storage.store import replace_file  # here: whoever verifies needs numpy alone

    text = json.dumps(claim, allow_nan=False).encode()
    check_length(text)
    arrays: dict[str, Any] = {
        "cast": np.packbits(cast) if cast.dtype == bool else cast.astype("<i4"),
        "close": np.packbits(close),
        "shape": np.array(cast.shape, "<i8"),
        "prediction": prediction.astype("<i8"),
        "certified": certified.astype(bool),
        "margin": margin.astype("<i8"),
        "claim": np.frombuffer(text, np.uint8),
        **{name: array.astype("<i4") for name, array in (listed or {}).items()},
    }
    with BytesIO() as file:
        np.savez_compressed(file, **arrays)
        replace_file(path, file.getvalue())


def worst_margins(file: ProofFile, sets: np.ndarray) -> np.ndarray:
    """For each image, the least of n_c - n_c[A] - (n_j - n_j[A]) - unit·|A| - [j < c] over sets A and rivals j ≠ c.

    c is the first class with the most votes. Close votes, or `slack`, count as absent for c and as present for j.
    """
    images, n, k = file.shape
    worst = np.full(images, np.iinfo(np.int64).max)
    at_once = max(1, _CELLS // (n * k))
    rows = max(1, _CELLS // (max(n, k) * min(images, at_once)))
    for first in range(0, images, at_once):
        some = slice(first, min(first + at_once, images))
        cast, close = file.votes(some)
        c = cast.sum(axis=1).argmax(axis=1)
        lower = np.maximum(cast - close - file.slack, 0)
        upper = np.minimum(np.maximum(cast, close) + file.slack, file.unit)
        lead = np.take_along_axis(lower, c[:, None, None], axis=2) - upper
        own = np.arange(k) == c[:, None]
        ties = np.arange(k) < c[:, None]
        for start in range(0, len(sets), rows):
            touched = sets[start : start + rows]
            # Sums of fewer than 2^20 numbers of up to 2^16: whole numbers below 2^53, which float64 adds exactly.
            left = np.matmul((~touched).astype(np.float64), lead.astype(np.float64)).astype(np.int64)
            margins = left - file.unit * touched.sum(axis=1)[:, None] - ties[:, None]
            least = np.where(own[:, None], np.iinfo(np.int64).max, margins).min(axis=(1, 2))
            worst[some] = np.minimum(worst[some], least)
    return worst


def verify(path: str | Path) -> list[str]:
    """The claims of the file that do not follow from its votes, a line each; empty when all of them hold.

    Raises `ValueError`, or an error of `zipfile`, `zlib` or the operating system, where the file is no proof.
    """
    return unproved(read(path))


def unproved(
    file: ProofFile,
    worst_of: Callable[[ProofFile, np.ndarray], np.ndarray] = worst_margins,
    winners_of: Callable[[ProofFile], np.ndarray] | None = None,
) -> list[str]:
    """The claims of the file that do not follow from its votes, a line each. Raises `ValueError` (see `verify`).

    Other ways to count than the majority give the worst margins over sets of ablations, and the winners.
    """
    kept = masks(file.ablation, *file.image_size)
    if len(kept) != file.shape[1]:
        size = "x".join(map(str, file.image_size))
        return [f"the votes are of {file.shape[1]} ablations, but {file.ablation} has {len(kept)} on {size}"]
    if file.slack < file.guard * file.unit and file.unit > 1:
        return [f"slack is {file.slack}; for a guard of {file.guard:g}, at least {file.guard * file.unit:g} is needed"]
    if prod(file.shape[1:]) > _MOST_VOTES:
        raise ValueError(f"an image has {prod(file.shape[1:])} votes; at most {_MOST_VOTES} are checked")
    worst, work = np.full(file.shape[0], np.iinfo(np.int64).max), 0
    for threat in dict.fromkeys(file.threats):
        work += sum(patch.work(len(kept), kept[0].size) for patch, _ in threat)  # to find what it touches
        work += 2**32 if sum(count for _, count in threat) > 1 else 0
        sets = touched_sets(kept, threat) if work <= _MOST_WORK else ()
        work += (len(sets) + 2**4) * prod(file.shape)
        if work > _MOST_WORK:
            raise ValueError("checking it would take hours; save fewer images or threats in a file")
        worst = np.minimum(worst, worst_of(file, np.asarray(sets)))
    prediction, certified, margin = file.prediction, file.certified, file.margin
    wrong = [
        f"image {i}: prediction {prediction[i]} is not the first class with the most votes"
        for i in np.nonzero((winners_of or _winners)(file) != prediction)[0]
    ]
    wrong += [
        f"image {i}: certified, but its worst margin is {worst[i]}" for i in np.nonzero(certified & (worst < 0))[0]
    ]
    wrong += [
        f"image {i}: margin {margin[i]} is claimed, but the worst is {worst[i]}" for i in np.nonzero(margin > worst)[0]
    ]
    wrong += [f"image {i}: certified and margin disagree" for i in np.nonzero(certified != (margin >= 0))[0]]
    return wrong


def _winners(file: ProofFile) -> np.ndarray:
    some = max(1, _CELLS // prod(file.shape[1:]))
    parts = [file.votes(slice(a, min(a + some, file.shape[0])))[0] for a in range(0, file.shape[0], some)]
    return np.concatenate([part.sum(axis=1).argmax(axis=1) for part in parts])


def told(file: ProofFile) -> str:
    """The claim of a file that is read, in two lines; and below them what shapes look like that are no rectangles."""
    threats = [
        " & ".join(f"{count}*{patch}" if count > 1 else f"{patch}" for patch, count in threat)
        for threat in file.threats
    ]
    (images, n, k), (height, width) = file.shape, file.image_size
    shapes = dict.fromkeys(patch for threat in file.threats for patch, _ in threat if isinstance(patch, Listed))
    drawn = [text for text in (shape.drawn() for shape in [*shapes][:_DRAWN]) if text]
    claim = (
        f"claim: of {images} images of {height}x{width} under {file.ablation}, {int(file.certified.sum())} certified "
        f"against {' or '.join(threats)}, by the votes of {n} ablations for {k} classes\n"
        f"assumed, which the file cannot show: a model casts these votes on the images; {_assumed(file)}"
    )
    return "\n".join([claim, *drawn])


def _assumed(file: ProofFile) -> str:
    """The assumptions of the proof about scores, and about votes that are near to turning over."""
    moves = f"no score of an untouched ablation moves by more than {file.guard:g}"
    if file.unit > 1:
        return f"{moves} ({file.slack} of {file.unit} units are allowed for)"
    number, close = prod(file.shape), file.number_close()
    if file.guard == 0:
        return f"no vote of an untouched ablation changes but the {close} of {number} marked close"
    if close == 0:
        return f"{moves}, which turns no vote over (none of {number} is marked close: the guard cannot be checked)"
    return f"{moves}, which turns no vote over but the {close} of {number} marked close"


def refuse(path: str, error: Exception) -> None:
    """Say on stderr, in one line, why the file is no proof."""
    reason = " ".join(f"{error or type(error).__name__}".split())
    print(f"error: {path!r} cannot be verified: {reason[:500]}", file=sys.stderr)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "verify":
        print("usage: robustpatch proof verify FILE", file=sys.stderr)
        return 2
    try:
        file = read(arguments[1])
        claim, wrong = told(file), unproved(file)
    except Exception as error:  # a damaged file can fail in any way, and each way means: nothing was proved
        refuse(arguments[1], error)
        return 2
    print(claim)
    print("\n".join(wrong) or "every claim follows from the votes")
    return 1 if wrong else 0

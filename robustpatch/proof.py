"""A certificate on disk, and a verifier that trusts nothing but the masks.

`python -m robustpatch.proof verify FILE` says what the file claims, and exits 0 when every claim follows from the votes
in it, 1 when one does not, 2 when the file cannot be read. Verification needs numpy alone and shares no code with the
certificates: it draws every mask pixel by pixel, slides every patch over them, and checks the inequality for every
rival.

The file is a numpy archive: `cast`, `close` (bit-packed [B,N,K]), `shape`, `prediction`, `certified`, `margin` and
`claim`, a JSON text: ablation, image_size, threats (height, width, count), method, guard, unit, slack. Where scores are
summed, `cast` are whole units, of which one ablation adds 0 to `unit` to each class, and rounding moves `slack`.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import combinations, combinations_with_replacement, product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

_UNITS = 2**16  # of a score that is summed: its range


def write(
    path: str | Path,
    *,
    cast: np.ndarray,
    close: np.ndarray,
    prediction: np.ndarray,
    certified: np.ndarray,
    margin: np.ndarray,
    **claim: Any,
) -> None:
    """Save votes and claims to `path`; see `Certificate.save`."""
    with open(path, "wb") as file:
        np.savez_compressed(
            file,
            cast=np.packbits(cast) if cast.dtype == bool else cast,
            close=np.packbits(close),
            shape=np.array(cast.shape),
            prediction=prediction,
            certified=certified,
            margin=margin,
            claim=np.frombuffer(json.dumps(claim).encode(), np.uint8),
        )


_ABLATION = re.compile(r"(?:([1-9]\d*)\*grid-)?(columns|rows|blocks):([1-9]\d*)(?:x([1-9]\d*))?(?:/([1-9]\d*))?")


def _windows(length: int, size: int, stride: int, wraps: bool) -> list[list[int]]:
    starts = range(0, length, stride)
    return [[at % length for at in range(start, start + size) if wraps or at < length] for start in starts]


def masks(ablation: str, height: int, width: int) -> np.ndarray:
    """The kept pixels [N,H,W] of "columns:2", "rows:3", "blocks:4x6", with a stride "columns:19/10", or, of a grid,
    "2*grid-columns:1" and "2*grid-blocks:4": every two of its cells; of "columns:2+rows:2" one after the other.
    """
    if "+" in ablation:
        return np.concatenate([masks(part, height, width) for part in ablation.split("+")])
    known = _ABLATION.fullmatch(ablation)
    keep, kind, first, last, stride = known.groups() if known else [""] * 5
    if not known or (last and kind != "blocks") or (keep and (kind == "rows" or last or stride)):
        raise ValueError(f"the ablation {ablation!r} is unknown to this verifier")
    size, number = int(first), int(keep or 1)
    step = size if keep else int(stride or 1)
    rows = [list(range(height))] if kind == "columns" else _windows(height, size, step, not keep)
    columns = [list(range(width))] if kind == "rows" else _windows(width, int(last or size), step, not keep)
    cells = list(product(rows, columns))
    if comb(len(cells), number) > 2**20:
        raise ValueError(f"{ablation} has more than a million choices of {len(cells)} cells: too many for plain loops")
    kept = np.zeros((comb(len(cells), number), height, width), bool)
    for mask, chosen in zip(kept, combinations(cells, number), strict=True):
        for cell in chosen:
            mask[np.ix_(*cell)] = True
    return kept


def touched_sets(kept: np.ndarray, height: int, width: int, count: int) -> np.ndarray:
    """The distinct sets [S,N] of ablations that `count` rectangles of `height` × `width` can touch together."""
    rows, columns = kept.shape[1] - height + 1, kept.shape[2] - width + 1
    if min(height, width, count) < 1:
        raise ValueError(f"{count} patches of {height}x{width} are none: nothing is claimed")
    if rows < 1 or columns < 1:
        raise ValueError(f"a {height}x{width} patch does not fit into {kept.shape[1]}x{kept.shape[2]}")
    single = {
        tuple(bool(mask[r : r + height, c : c + width].any()) for mask in kept)
        for r in range(rows)
        for c in range(columns)
    }
    if comb(len(single) + count - 1, count) > 10**6:
        raise ValueError(f"{count} patches have more than a million unions: too many for plain loops")
    return np.array(sorted({tuple(np.any(some, axis=0)) for some in combinations_with_replacement(single, count)}))


def worst_margins(
    sure: np.ndarray, possible: np.ndarray, unit: int, prediction: np.ndarray, sets: np.ndarray
) -> np.ndarray:
    """For each image, the least of n_c - n_c[A] - (n_j - n_j[A]) - unit·|A| - [j < c] over sets A and rivals j ≠ c; n_c
    counts what is `sure`, n_j what is `possible`.
    """
    images, classes = np.arange(len(sure)), sure.shape[2]
    worst = np.full(len(sure), np.iinfo(np.int64).max)
    for touched in sets:
        own = sure[:, ~touched].sum(axis=1)[images, prediction]
        for j in range(classes):
            margin = own - possible[:, ~touched, j].sum(axis=1) - unit * touched.sum() - (j < prediction)
            worst = np.where(j == prediction, worst, np.minimum(worst, margin))
    return worst


def verify(path: str | Path) -> list[str]:
    """The claims of the file that do not follow from its votes, a line each; empty when all of them hold."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        claim = json.loads(file["claim"].tobytes())
        shape = tuple(int(side) for side in file["shape"])
        unit, slack, guard = claim.get("unit", 1), claim.get("slack", 0), claim["guard"]
        # Another unit is another adversary, and a negative slack counts for the claim what has to count against it.
        if unit not in (1, _UNITS) or not slack >= 0 or not 0 <= guard < 1:
            return [f"unit is {unit}, slack {slack} and guard {guard}; 1 or {_UNITS}, and no less than 0 are needed"]
        close = np.unpackbits(file["close"])[: np.prod(shape)].reshape(shape).astype(bool)
        if unit == 1:
            cast = np.unpackbits(file["cast"])[: np.prod(shape)].reshape(shape).astype(bool)
            sure, possible = cast & ~close, cast | close
        else:
            cast = file["cast"].astype(np.int64)
            sure, possible = np.maximum(cast - slack, 0), np.minimum(cast + slack, unit)
        prediction, certified, margin = file["prediction"], file["certified"], file["margin"]
    kept = masks(claim["ablation"], *claim["image_size"])
    if kept.shape[0] != shape[1] or any(len(values) != shape[0] for values in (prediction, certified, margin)):
        return [f"the votes have shape {shape}, which does not fit {claim['ablation']} on {claim['image_size']}"]
    if unit > 1 and (cast.shape != shape or (cast < 0).any() or (cast > unit).any() or slack < guard * unit):
        return [
            f"scores are {cast.shape} of {cast.min()} to {cast.max()} units and slack is {slack}; {shape} of 0 to "
            f"{unit} and, for a guard of {guard:g}, at least {guard * unit:g} are needed"
        ]
    wrong = [
        f"image {i}: prediction {prediction[i]} is not the first class with the most votes"
        for i in np.nonzero(cast.sum(axis=1).argmax(axis=1) != prediction)[0]
    ]
    worst = np.minimum.reduce(
        [worst_margins(sure, possible, unit, prediction, touched_sets(kept, *threat)) for threat in claim["threats"]]
    )
    wrong += [
        f"image {i}: certified, but its worst margin is {worst[i]}" for i in np.nonzero(certified & (worst < 0))[0]
    ]
    wrong += [
        f"image {i}: margin {margin[i]} is claimed, but the worst is {worst[i]}" for i in np.nonzero(margin > worst)[0]
    ]
    wrong += [f"image {i}: certified and margin disagree" for i in np.nonzero(certified != (margin >= 0))[0]]
    return wrong


def claimed(path: str | Path) -> str:
    """What the file says that it proves, for a reader to hold against what was promised."""
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        claim, certified = json.loads(file["claim"].tobytes()), file["certified"]
    threats = [f"{count}*{h}x{w}" if count > 1 else f"{h}x{w}" for h, w, count in claim["threats"]]
    height, width = claim["image_size"]
    return (
        f"claim: of {len(certified)} images of {height}x{width} under {claim['ablation']}, {int(certified.sum())} "
        f"certified against {' or '.join(threats)}, where no score of an untouched ablation moves by more than "
        f"{claim['guard']:g}"
    )


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "verify":
        print("usage: python -m robustpatch.proof verify FILE", file=sys.stderr)
        return 2
    try:
        claim, wrong = claimed(arguments[1]), verify(arguments[1])
    except Exception as error:  # a damaged file can fail in any way, and each way means: nothing was proved
        print(f"{arguments[1]} cannot be verified: {error}", file=sys.stderr)
        return 2
    print(claim)
    print("\n".join(wrong) or "every claim follows from the votes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

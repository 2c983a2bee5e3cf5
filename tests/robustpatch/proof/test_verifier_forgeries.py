"""Forged proof files: none verifies unless plain loops over its votes say that every word of it is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from robustpatch.ablations.parse import parse_ablation
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.voting.votes import UNITS
from tests import oracles
from tests.robustpatch.forgeries import HONEST, Members, forgeries, honest, packed

CLAIM = re.compile(
    r"claim: of (\d+) images of (\d+)x(\d+) under (\S+), (\d+) certified against (.+), by the votes of (\d+) ablations "
    r"for (\d+) classes"
)
ALL_OF = ("columns", "union", "summed")  # of the others every third forgery, to save time
FIELDS = {"ablation", "image_size", "threats", "method", "guard", "unit", "slack"}


class Malformed(Exception):
    """What the oracle says of a file that is none."""


def need(condition: bool) -> None:
    if not condition:
        raise Malformed


def whole(value: Any) -> bool:
    return type(value) is int


def fields_of(text: Any) -> dict[str, Any]:
    """The claim's fields, if they are those of a claim."""
    if not isinstance(text, str):
        text = json.dumps(text)

    def table(pairs):
        need(len(dict(pairs)) == len(pairs))
        return dict(pairs)

    try:
        need(len(text.encode()) <= 2**16)
        claim = json.loads(text, object_pairs_hook=table)
    except (ValueError, RecursionError) as error:
        raise Malformed from error
    need(isinstance(claim, dict))
    claim = {"unit": 1, "slack": 0, **claim}
    need(set(claim) == FIELDS)
    size, threats = claim["image_size"], claim["threats"]
    need(isinstance(size, list) and len(size) == 2 and all(map(whole, size)) and min(size) > 0)
    need(isinstance(threats, list) and threats != [])
    for one in threats:
        if isinstance(one, dict):
            need(list(one) == ["families"] and isinstance(one["families"], list) and one["families"] != [])
            for pair in one["families"]:
                need(isinstance(pair, list) and len(pair) == 2 and all(map(whole, pair)) and pair[0] >= 0 < pair[1])
            named = [number for number, _ in one["families"]]
            need(all(a < b for a, b in pairwise(named)))
            need(sum(count for _, count in one["families"]) <= size[0] * size[1])
            continue
        need(isinstance(one, list) and len(one) == 3 and all(map(whole, one)) and min(one) > 0)
        need(one[0] <= size[0] and one[1] <= size[1] and one[2] <= size[0] * size[1])
    need(claim["method"] in ("exact", "margin"))
    need(type(claim["guard"]) in (int, float) and 0 <= claim["guard"] < 1)
    need(whole(claim["unit"]) and whole(claim["slack"]) and claim["unit"] in (1, UNITS))
    need(0 <= claim["slack"] <= (0 if claim["unit"] == 1 else UNITS))
    need(isinstance(claim["ablation"], str))
    try:
        ablation = parse_ablation(claim["ablation"])
        need(str(ablation) == claim["ablation"])
        ablation.count(*size)
    except (InvalidInput, ValueError, OverflowError) as error:
        raise Malformed from error
    return claim


def listed(runs: np.ndarray, places: np.ndarray, size: list[int]) -> list[tuple[str, tuple[frozenset, ...]]]:
    """Of each family what is said of it, and the pixels at each place: row by row, each row as it has to be."""
    need(runs.shape[1] == places.shape[1] == 4 and len(runs) > 0 < len(places))
    sets: list[list[tuple[int, int]]] = []
    last = None
    for number, row, start, length in runs.tolist():
        need(min(number, row, start) >= 0 and 1 <= length <= size[1] and row < size[0] and start < size[1])
        need(number in (len(sets) - 1, len(sets)))
        if number == len(sets):
            sets.append([])
            last = None
        need(last is None or row > last[0] or (row == last[0] and start > last[1]))
        last = (row, start + length)
        sets[-1] += [(row, start + i) for i in range(length)]
    need(all(min(r for r, _ in some) == 0 == min(c for _, c in some) for some in sets))
    families: list[list[tuple[int, ...]]] = []
    owner: dict[int, int] = {}
    for family, number, row, column in places.tolist():
        need(min(family, number, row, column) >= 0 and family in (len(families) - 1, len(families)))
        if family == len(families):
            families.append([])
        need(number < len(sets) and owner.setdefault(number, family) == family)
        families[-1].append((number, row, column))
    need(sorted(owner) == list(range(len(sets))))
    need(all(some == sorted(set(some)) for some in families))
    need([number for some in families for number, *_ in some] == sorted(n for some in families for n, *_ in some))
    found = []
    for at, some in enumerate(families, 1):
        own = [sets[number] for number in dict.fromkeys(number for number, *_ in some)]
        where = tuple(frozenset((r + row, c + column) for r, c in sets[number]) for number, row, column in some)
        need(all(r < size[0] and c < size[1] for pixels in where for r, c in pixels))
        many = f"one of {len(own)} sets of {min(map(len, own))} to {max(map(len, own))}" if own[1:] else len(own[0])
        tall, wide = max(r for one in own for r, _ in one) + 1, max(c for one in own for _, c in one) + 1
        found.append((f"shape {at} ({many} pixels within {tall}x{wide}, at {len(where)} places)", where))
    return found


def patches_of(claim: dict[str, Any], given: dict[str, Any]) -> tuple[tuple, str]:
    """For each threat the places, as sets of pixels, of each family and how many; and what is said of all."""
    size, families, found, said = claim["image_size"], [], [], []
    small = size[0] * size[1] <= 10_000
    if "runs" in given:
        families = listed(given["runs"], given["places"], size)
    used = set()
    for one in claim["threats"]:
        if isinstance(one, list):
            height, width, count = one
            corners = [(r, c) for r in range(size[0] - height + 1) for c in range(size[1] - width + 1)] if small else []
            parts = [(f"{height}x{width}", tuple(frozenset(oracles.rectangle(*at, height, width)) for at in corners))]
            counts = [count]
        else:
            need(all(number < len(families) for number, _ in one["families"]))
            parts, counts = [families[n] for n, _ in one["families"]], [count for _, count in one["families"]]
            used |= {number for number, _ in one["families"]}
        found.append(tuple((where, count) for (_, where), count in zip(parts, counts, strict=True)))
        texts = [f"{n}*{text}" if n > 1 else text for (text, _), n in zip(parts, counts, strict=True)]
        said.append(" & ".join(texts))
    need(len(used) == len(families))
    return tuple(found), " or ".join(said)


def bits(array: np.ndarray, shape: tuple[int, ...]) -> list[int]:
    found = [int(byte) >> (7 - at) & 1 for byte in array for at in range(8)]
    number = shape[0] * shape[1] * shape[2]
    need(len(array) == -(-number // 8) and not any(found[number:]))
    return found[:number]


def expected(members: Members) -> tuple[Callable[[], bool], tuple[Any, ...]]:
    """A function that tells whether the file is true, and what it proves. Raises `Malformed`."""
    names = [name for name, _ in members]
    wanted = ["cast", "certified", "claim", "close", "margin", "prediction", "shape"]
    need(
        sorted(names) in (wanted, sorted([*wanted, "places", "runs"]))
        and not any(isinstance(one, bytes) for _, one in members)
    )
    given = dict(members)
    claim = fields_of(given["claim"])
    kinds = {name: (str(one.dtype.str), one.ndim) for name, one in given.items() if name != "claim"}
    scored = claim["unit"] > 1
    need(all(kinds[name] == ("<i4", 2) for name in ("runs", "places") if name in given))
    need(kinds["shape"] == ("<i8", 1) and len(given["shape"]) == 3)
    b, n, k = shape = tuple(int(side) for side in given["shape"])
    need(b >= 1 and n >= 1 and k >= 2)
    need(kinds["prediction"] == kinds["margin"] == ("<i8", 1) and kinds["certified"] == ("|b1", 1))
    need(all(len(given[name]) == b for name in ("prediction", "margin", "certified")))
    need(all(byte in (0, 1) for byte in given["certified"].tobytes()))
    need(kinds["close"] == ("|u1", 1) and kinds["cast"] == (("<i4", 3) if scored else ("|u1", 1)))
    close = bits(given["close"], shape)
    if scored:
        need(given["cast"].shape == shape and not any(close))
        cast = [int(one) for one in given["cast"].reshape(-1)]
        need(all(0 <= one <= UNITS for one in cast))
    else:
        cast = bits(given["cast"], shape)
    certified = [bool(one) for one in given["certified"]]
    threats, said = patches_of(claim, given)
    says = (b, *claim["image_size"], claim["ablation"], sum(certified), said, n, k)
    if claim["image_size"][0] * claim["image_size"][1] > 10_000 or (scored and claim["slack"] < claim["guard"] * UNITS):
        return lambda: False, says
    what = (claim["ablation"], tuple(claim["image_size"]), threats, claim["unit"], claim["slack"], shape)

    def true() -> bool:
        found = truth(*what, tuple(cast), tuple(close))
        prediction, margin = given["prediction"], given["margin"]
        return found is not None and all(
            prediction[i] == winner and margin[i] <= worst and certified[i] == (margin[i] >= 0)
            for i, (winner, worst) in enumerate(found)
        )

    return true, says


@cache
def truth(ablation, size, threats, unit, slack, shape, cast, close):
    """Each image's winner, and the least lead over any rival that is left after any patch; None if votes do not fit."""
    b, n, k = shape
    if len(oracles.kept(ablation, *size)) != n:
        return None
    sets, kept = set(), oracles.kept(ablation, *size)
    for threat in threats:
        reached = {frozenset()}
        for where, count in threat:
            single = {frozenset(m for m, some in enumerate(kept) if some & pixels) for pixels in where}
            for _ in range(count):
                more = {one | other for one in reached for other in single}
                if more == reached:
                    break
                reached = more
        sets |= reached
    found = []
    for i in range(b):
        votes = [[cast[(i * n + m) * k + j] for j in range(k)] for m in range(n)]
        near = [[close[(i * n + m) * k + j] for j in range(k)] for m in range(n)]
        c = oracles.winner([sum(row[j] for row in votes) for j in range(k)])
        least = None
        for attacked in sets:
            for j in range(k):
                if j == c:
                    continue
                own = rival = 0
                for m in range(n):
                    if m in attacked:
                        rival += unit
                    elif unit > 1:
                        own += max(0, votes[m][c] - slack)
                        rival += min(unit, votes[m][j] + slack)
                    else:
                        own += votes[m][c] and not near[m][c]
                        rival += votes[m][j] or near[m][j]
                lead = own - rival - (j < c)
                least = lead if least is None else min(least, lead)
        found.append((c, least))
    return found


def status(content: bytes, path, capsys) -> tuple[int, str, str]:
    path.write_bytes(content)
    code = proof.main(["verify", str(path)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("kind", HONEST)
def test_thousands_of_forgeries(kind, tmp_path, capsys):
    """Status 0 only for what is true, with the true numbers printed; 1 for lies, 2 and a line for what is no proof."""
    members, seen = honest(kind, tmp_path / "honest.npz"), {0: 0, 1: 0, 2: 0}
    code, out, _ = status((tmp_path / "honest.npz").read_bytes(), tmp_path / "file.npz", capsys)
    assert code == 0, out
    assert expected(members)[0]()
    number, place = 0, list(HONEST).index(kind)
    every, least = (1, 1000) if kind in ALL_OF else (3, 330)
    for at, (name, forged) in enumerate(forgeries(members)):
        if at % every != place % every and not name.startswith(("runs[", "places[", "runs w", "places w", "threats")):
            continue
        code, out, err = status(packed(forged), tmp_path / "forged.npz", capsys)
        number += 1
        seen[code] += 1
        try:
            true, says = expected(forged)
        except Malformed:
            assert (code, out, err.count("\n")) == (2, "", 1), (name, out, err)
            continue
        if code == 2:
            assert re.search(r"are drawn", err), (name, err)  # too much work, true or not
            continue
        assert code == (0 if true() else 1), (name, out)
        match = CLAIM.match(out)
        assert match, out
        b, height, width, ablation, certified, threats, n, k = match.groups()
        assert (int(b), int(height), int(width), ablation, int(certified), threats, int(n), int(k)) == says, name
        assert out.splitlines()[-1] == "every claim follows from the votes" or code == 1
    assert number >= least
    assert min(seen.values()) > 5, seen

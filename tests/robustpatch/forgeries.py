"""Proof files and what becomes of them in a forger's hands: a table of changes to every field, of every kind."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import robustpatch
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import certify_votes
from robustpatch.voting.votes import UNITS, Scored, Votes

Members = list[tuple[str, Any]]  # names in the archive, and arrays, the claim's text or fields, or a member's bytes

HONEST = {  # ablation, threat, image size, classes, method, guard
    "columns": ("columns:2", "1x2", (3, 9), 3, "exact", 1e-4),
    "blocks": ("blocks:2", "1x1", (4, 5), 2, "exact", 0.0),
    "strides": ("blocks:2x3/2", "2x1", (6, 9), 3, "exact", 1e-4),
    "union": ("columns:2+rows:1", "2x1,1x2", (6, 9), 3, "exact", 1e-4),
    "grid": ("2*grid-blocks:2", "2x1", (5, 6), 2, "exact", 1e-4),
    "grid columns": ("1*grid-columns:2", "1x1", (2, 9), 5, "exact", 1e-4),
    "two patches": ("columns:1", "2*1x1,2x2", (2, 9), 3, "exact", 1e-4),
    "the paper's": ("rows:2", "1x3", (9, 3), 3, "margin", 1e-4),
    "summed": ("columns:1", "1x2", (2, 7), 3, "exact", 1e-3),
    "shapes": ("blocks:1", "cross:3/1,1x2,1x2@45", (5, 6), 3, "exact", 1e-4),
    "together": ("columns:1", "2*disc:1 & 1x2", (2, 15), 3, "exact", 1e-4),
    "sets": ("rows:1", "footprints:3x9x2/kAAAhAAABA", (9, 2), 2, "exact", 1e-4),
    "a region": ("columns:1", "disc:2 in 2x9/v_7A", (2, 9), 3, "margin", 1e-4),
}


def honest(kind: str, path: Path) -> Members:
    """What `Certificate.save` writes of seven images, from contested to unanimous; the claim as its fields."""
    text, threat, size, classes, method, guard = HONEST[kind]
    ablation, generator = parse_ablation(text), torch.Generator().manual_seed(0)
    shape = (7, ablation.count(*size), classes)
    surer = torch.linspace(0, 1, 7)[:, None, None]
    likely = torch.where(torch.arange(classes) == 1, 0.3 + 0.7 * surer, 0.3 - 0.3 * surer)
    drawn = torch.rand(shape, generator=generator)
    if kind == "summed":
        votes: Votes | Scored = Scored((likely * UNITS * (0.6 + 0.4 * drawn)).int(), 66)
    else:
        votes = Votes(drawn < likely, torch.rand(shape, generator=generator) < 0.02 * (guard > 0))
    threats = robustpatch.parse_threat(threat, size)
    made = certify_votes(votes, ablation, threats, size, method=method, guard=guard)  # type: ignore[arg-type]
    assert 0 < int(made.certified.sum()) < 7, kind
    made.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    return [(name, json.loads(array.tobytes()) if name == "claim" else array) for name, array in arrays.items()]


def packed(members: Members, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The archive of these members: arrays as numpy writes them, bytes as they are."""
    content = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(content, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of one name twice
        for name, one in members:
            archive.writestr(name if "." in name else f"{name}.npy", one if isinstance(one, bytes) else npy(one))
    return content.getvalue()


def npy(one: Any) -> bytes:
    """The bytes of an .npy of an array, or of a claim's fields or text."""
    if not isinstance(one, np.ndarray | np.generic):
        text = one if isinstance(one, str) else json.dumps(one)
        one = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(one), allow_pickle=True)
    return content.getvalue()


def header(text: str, content: bytes = b"", magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    """An .npy of any header."""
    size = len(text).to_bytes(2 if magic[6] == 1 else 4, "little")
    return magic + size + text.encode() + content


def replaced(members: Members, name: str, one: Any) -> Members:
    return [(own, one if own == name else value) for own, value in members]


def forgeries(members: Members) -> Iterator[tuple[str, Members]]:
    """Each field, each kind: a name, and the members of the forged archive."""
    given = dict(members)
    for name, array in members:
        if name != "claim":
            for kind, change in _ARRAYS.items():
                changed = change(array)
                if changed is not None:
                    yield f"{name} {kind}", replaced(members, name, changed)
        yield f"{name} missing", [one for one in members if one[0] != name]
        yield f"{name} twice", [*members, (name, array)]
        yield f"{name} twice, then empty", [*members, (name, b"")]
        yield f"{name} renamed", [(own + "_" * (own == name), one) for own, one in members]
        yield f"{name} without its ending", [(own + "." * (own == name), one) for own, one in members]
        plain = npy(array)
        for kind, content in (
            ("is empty", b""),
            ("is cut", plain[:-1]),
            ("goes on", plain + b"\0"),
            ("goes on with another", plain + plain),
            ("is a header", plain[:64]),
            ("is no array", b"not an array"),
            ("is a pickle", b"\x80\x04N."),
            ("is of version 2", header("{'descr': '<i8', 'fortran_order': False, 'shape': (7,), }\n", b"\0" * 56, _V2)),
            ("runs code", header("__import__('os').system('true')\n")),
            ("is nested", header("(" * 150 + ")" * 150 + "\n")),
            ("has a long header", header(" " * 60_000 + "\n")),
            ("is huge", header(_shaped("(4611686018427387904,)"))),
            ("overflows", header(_shaped("(4294967296, 4294967296)"))),
            ("overflows to its own size", header(_shaped("(2305843009213693952, 8)"))),
            ("has a negative side", header(_shaped("(-7,)"), b"\0" * 56)),
            ("has a side of 10^40", header(_shaped(f"({10**40},)"))),
        ):
            yield f"{name} {kind}", replaced(members, name, content)
    claim = given["claim"]
    for field, value in claim.items():
        for other in (*_VALUES, *_OTHERS.get(field, ())):
            if repr(other) != repr(value):
                yield f"{field} is {str(other)[:60]!r}", replaced(members, "claim", {**claim, field: other})
        lacking = {own: one for own, one in claim.items() if own != field}
        yield f"no {field}", replaced(members, "claim", lacking)
        yield f"{field} in capitals", replaced(members, "claim", {**lacking, field.upper(): value})
        text, again = json.dumps(claim), json.dumps({field: value})[1:-1]
        yield f"{field} twice", replaced(members, "claim", f"{text[:-1]}, {again}}}")
        yield f"{field} twice, first another", replaced(members, "claim", f'{{"{field}": 0, {text[1:]}')
        for bad in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "1" + "0" * 5000, "[" * 30_000, "0x1", "01", "'1'"):
            dumped = json.dumps({**claim, field: "HERE"}).replace('"HERE"', bad)
            yield f"{field} is {bad[:12]}", replaced(members, "claim", dumped)
    for kind, text in _TEXTS.items():
        yield f"the claim {kind}", replaced(members, "claim", text(json.dumps(claim)))
    if "runs" in given:
        yield from _about_footprints(members)
    yield "runs more", [*members, ("runs", np.zeros((1, 4), "<i4"))]
    yield "runs and places more", [*members, *[(name, np.array([[0, 0, 0, 1]], "<i4")) for name in ("runs", "places")]]
    yield "an unknown field", replaced(members, "claim", {**claim, "proved": True})
    yield "one array more", [*members, ("extra", np.arange(3))]
    yield "one file more", [*members, ("extra.txt", b"hello")]
    yield "no members", []
    yield "half of the images", [(n, a[:3] if n in ("prediction", "certified", "margin") else a) for n, a in members]
    yield "another order", members[::-1]
    yield "classes for ablations", replaced(members, "shape", given["shape"][[0, 2, 1]])
    for i in range(7):
        yield from _about_image(members, i)


_V2 = b"\x93NUMPY\x02\x00"


def _shaped(shape: str) -> str:
    return f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}\n"


def _about_image(members: Members, i: int) -> Iterator[tuple[str, Members]]:
    """Lies about one image, small and large, alone and so that two claims agree."""
    given = dict(members)
    certified, margin, classes = given["certified"], given["margin"], int(given["shape"][2])
    for to in range(-1, classes + 1):
        if to != given["prediction"][i]:
            yield f"image {i} is class {to}", replaced(members, "prediction", _at(given["prediction"], i, to))
    for to in (margin[i] + 1, margin[i] - 1, -1 - margin[i], 0, -1, 2**62, -(2**62)):
        agreeing = replaced(members, "certified", _at(certified, i, to >= 0))
        yield f"image {i} has margin {to}", replaced(members, "margin", _at(margin, i, to))
        yield f"image {i} has margin {to}, and so it is certified", replaced(agreeing, "margin", _at(margin, i, to))
    yield f"image {i} is turned", replaced(members, "certified", _at(certified, i, not certified[i]))
    for name in ("cast", "close"):
        turned = given[name].copy()
        if turned.ndim == 1:
            turned[i * len(turned) // 7] ^= 0b1010_0101
        else:
            turned[i, 0] = UNITS - turned[i, 0]
        yield f"{name} of image {i} turned", replaced(members, name, turned)


def _about_footprints(members: Members) -> Iterator[tuple[str, Members]]:
    """Rows of runs and places changed, left out, twice or in another order; both left out; families named otherwise."""
    given = dict(members)
    for name in ("runs", "places"):
        array = given[name]
        for i in {0, 1, len(array) // 2, len(array) - 1}:
            for column in range(4):
                for by in (1, -1, 2**24, -(2**31)):
                    changed = array.copy()
                    changed[i, column] = (int(changed[i, column]) + by) % 2**31 if by > 0 else changed[i, column] + by
                    yield f"{name}[{i},{column}] by {by}", replaced(members, name, changed)
            yield f"{name} without {i}", replaced(members, name, np.delete(array, i, axis=0))
            yield f"{name} with {i} twice", replaced(members, name, np.insert(array, i, array[i], axis=0))
        yield f"{name} in another order", replaced(members, name, array[np.argsort(array[:, 2], kind="stable")])
        yield f"{name} with a column more", replaced(members, name, np.pad(array, ((0, 0), (0, 1))))
    dropped = [one for one in members if one[0] not in ("runs", "places")]
    yield "no footprints", dropped
    yield "no footprints named", replaced(dropped, "claim", {**given["claim"], "threats": [[1, 1, 1]]})
    yield "footprints that none names", replaced(members, "claim", {**given["claim"], "threats": [[1, 1, 1]]})


def _at(array: np.ndarray, i: int, value: Any) -> np.ndarray:
    array = array.copy()
    array[i] = value
    return array


def _as(array: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(kind)


def _raw(array: np.ndarray, byte: int) -> np.ndarray | None:
    if array.dtype != bool:
        return None
    return np.where(array.view(np.uint8) > 0, np.uint8(byte), np.uint8(0)).view(bool)


_ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "is doubled": lambda a: np.stack([a, a]),
    "is a column": lambda a: a[..., None],
    "is a row": lambda a: a[None],
    "is a number": lambda a: a.reshape(-1)[0],
    "is empty": lambda a: a[:0],
    "is shorter": lambda a: a[:-1],
    "is longer": lambda a: np.concatenate([a, a[-1:]]),
    "is a thousand": lambda a: np.ones((len(a), 1000), a.dtype),
    "is reversed": lambda a: a[::-1],
    "is shifted": lambda a: np.roll(a, 1, axis=0),
    "is 0": lambda a: a * 0,
    "is full": lambda a: np.full_like(a, True if a.dtype == bool else min(np.iinfo(a.dtype).max, 2**40)),
    "is turned": lambda a: ~a,
    "is less": lambda a: None if a.dtype == bool else a - 1,
    "is more": lambda a: None if a.dtype == bool else a + 1,
    "is negative": lambda a: None if a.dtype == bool else 0 - a,
    "has bits at the end": lambda a: None if a.dtype != np.uint8 else _at(a, -1, a[-1] | 1),
    "has bytes of 2": lambda a: _raw(a, 2),
    "has bytes of 255": lambda a: _raw(a, 255),
    "is 2-D in Fortran's order": lambda a: np.asfortranarray(np.stack([a.reshape(-1)] * 2)),
    "is an object": lambda a: a.astype(object),
    "is a text": lambda a: a.astype(str),
    "is structured": lambda a: a.astype([("a", a.dtype)]),
    "is a date": lambda a: a.astype(np.int64).astype("M8[s]"),
    **{
        f"is {kind}": lambda a, kind=kind: None if a.dtype == np.dtype(kind) else _as(a, kind)
        for kind in ("f2", "f4", "f8", "c8", "i1", "u1", "i4", "u4", ">i4", ">i8", "u8", "?", "S1", "V4")
    },
    "is NaN": lambda a: np.full(a.shape, np.nan),
}
_VALUES = [
    *json.loads(
        '[null, true, false, 0, 1, 2, 7, -1, 0.0, 0.5, 1.0, 1e300, "", "1", "columns:1", "\\ud800", "\\u001b[31m"]'
    ),
    *json.loads('[[], [1], [0], [1, 1], [1, 1, 1], [[1, 1, 1]], [[]], [null], [true, true], {}, {"a": 1}]'),
    *(2**31, 2**40, 2**62, 10**30, -(10**30), "x" * 70_000),
]
_ABLATIONS = """
columns:0 columns:2/0 2*grid-columns:0 2*grid-blocks:2x3 2*grid-blocks:2/2 grid-columns:2 columns:2+ 2*columns:2
columns:1 columns:2 columns:3 columns:8 rows:1 rows:2 blocks:1 blocks:2 blocks:3x2 columns:2/2 rows:2/3 blocks:2/2
1*grid-columns:1 2*grid-columns:2 3*grid-blocks:2 blocks:2x3/2 columns:1/0 columns:01 columns:1/1 columns:1/01
Columns:1 columns:+1 columns:1.0 columns:1e0 columns:٢ columns:２ columns:-1 columns:1_0 columns: columns:99
columns:9999999 columns:99999999999999999999 columns:1/99 rows:99 blocks:99x1 blocks:2x2 blocks:0 blocks:2x0
blocks:2x blocks:x2 columns:2x2 stripes:2 2*columns:1 grid-columns:1 0*grid-columns:1 99*grid-columns:1
2*grid-rows:1 2*grid-blocks:2x2 2*grid-blocks:1/1 columns:1+ +columns:1 columns:1++columns:1 columns:1+columns:1
columns:2+rows:1 rows:1+columns:2 columns:2+rows:1+rows:1 (columns:1) columns:1;rows:1
"""
_OTHERS: dict[str, Any] = {  # of one field alone
    "ablation": [
        *_ABLATIONS.split(),
        *("columns: 1", " columns:1", "columns:1\n", "columns:1\0", "+".join(["columns:1"] * 500)),
    ],
    "image_size": json.loads(
        "[[9, 3], [3, 9], [4, 5], [5, 6], [2, 9], [9], [3, 9, 1], [0, 9], [9, 0], [0, 0], [-3, -9], [3.0, 9.0], "
        '[3, true], ["3", "9"], [[3, 9]], "39", [1099511627776, 1099511627776], [1, 16777216], [16777216, 1], [40, 9], '
        '[3, 40], [null, null], {"0": 3, "1": 9}, [4, 9], [3, 10], [7, 9], [6, 10], [2, 7], [2, 6], [1, 27]]'
    ),
    "threats": json.loads(
        "[[[1, 1, 1]], [[1, 2, 1]], [[2, 1, 1]], [[2, 2, 1]], [[1, 2, 2]], [[1, 1, 3]], [[1, 1, 9]], "
        "[[1, 1, 1000000]], [[1, 1, 100000000000000000]], [[0, 1, 1]], [[1, 0, 1]], [[1, 1, 0]], [[-1, 1, 1]], "
        "[[1, 1, -1]], [[1, 1]], "
        '[[1, 1, 1, 1]], [[99, 1, 1]], [[1, 99, 1]], [[1.0, 1, 1]], [[1, 1, true]], [["1", 1, 1]], '
        "[[1, 2, 1], [0, 0, 0]], [[1, 2, 1], [99, 99, 1]], [[1, 2, 1], [1, -2, 1]], [], "
        "[[1, 6, 1]], [[1, 2, 1], [1, 5, 1]], [[[1, 1, 1]]], [[1, 2, 1], [2, 1, 1]], "
        '[[1, 2, 1], [1, 2, 1]], [[2, 3, 1], [1, 1, 1]], {"0": [1, 1, 1]}, "1x1", [1, 1, 1], [null], '
        '[{"families": [[0, 1]]}], [{"families": [[0, 2]]}], [{"families": [[0, 1], [1, 1]]}], [{"families": []}], '
        '[{"families": [[1, 1], [0, 1]]}], [{"families": [[0, 1], [0, 1]]}], [{"families": [[0, 0]]}], [{}], '
        '[{"families": [[-1, 1]]}], [{"families": [[0, true]]}], [{"families": [[0]]}], [{"families": [0, 1]}], '
        '[{"families": [[0, 1, 1]]}], [{"families": {"0": 1}}], [{"families": [[0, 1]], "name": "a"}], [[0, 1]], '
        '[{"families": [[0, 1]]}, {"families": [[1, 1]]}], [{"families": [[0, 1]]}, [1, 2, 1]], '
        '[{"families": [[0, 1000000]]}], [{"families": [[0, 100000000000000000]]}], [{"families": [[9, 1]]}], '
        '[[[0, 1]]], [{"families": [[[0, 1]]]}], [{"family": [[0, 1]]}], [{"families": [[0, 1]]}, [0, 1, 1]]]'
    ),
    "method": ("exact", "margin", "randomized", "bounds", "Exact", "exact ", ["exact"], "exact\n"),
    "guard": (0.001, 0.01, 0.5, 0.99, 0.9999999, 1 - 1e-16, 1.0001, -1e-9, 1e-300, "0.0001", [0.0001], 0.0001000001),
    "unit": (UNITS, UNITS - 1, UNITS + 1, -UNITS, 2**17, 1.0, float(UNITS)),
    "slack": (UNITS, UNITS + 1, -UNITS, 65, 66, 67, 6, 66.0, 65.5),
}
_TEXTS: dict[str, Callable[[str], str]] = {
    "is empty": lambda text: "",
    "is null": lambda text: "null",
    "is a list": lambda text: f"[{text}]",
    "is a text": json.dumps,
    "is a number": lambda text: "1",
    "is twice there": lambda text: text + text,
    "goes on": lambda text: f"{text} x",
    "has a byte-order mark": lambda text: f"\ufeff{text}",
    "is no UTF-8": lambda text: text.replace("columns", "colum\udc80"),
    "is cut": lambda text: text[:-1],
    "has a comment": lambda text: f"{text}//",
    "has a comma more": lambda text: f"{text[:-1]},}}",
    "has single quotes": lambda text: text.replace('"', "'"),
    "has a null byte": lambda text: f"{text}\0",
    "is nested": lambda text: "[" * 30_000 + "]" * 30_000,
    "is nested in tables": lambda text: '{"a":' * 10_000 + "1" + "}" * 10_000,
    "is padded": lambda text: text + " " * 10,
    "is long": lambda text: text + " " * 70_000,
}

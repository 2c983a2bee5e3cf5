"""Safety cases of toys, one for each kind of evidence, and what becomes of them in a forger's hands."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluate.bundle.evidence import evidence_of, packed
from evaluate.bundle.make import archive
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.proof.bundle import ABOUT, CASE, IMAGES, KINDS, case, checked, numbers, pack
from robustpatch.storage.npz import read_members
from robustpatch.threats.parse import parse_threat
from robustpatch.voting.rules import TopOne
from tests.attacks.toys import Level, smoothed

SIZE, NUMBER = (4, 12), 8
EVIDENCE = "evidence/00000000-00000008.npz"
THREAT = "2x2"
Forgery = tuple[str, Callable[[], bytes]]  # a name, and what makes the archive


class Shade(nn.Module):
    """Logits by how bright the image is; hidden pixels count as grey."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 12 * (x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([-lead, lead], dim=1)


def linear() -> nn.Module:
    """The same as a network that bounds are known of."""
    layer = nn.Linear(SIZE[0] * SIZE[1], 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand_as(layer.weight) / SIZE[0])
        layer.bias.copy_(torch.tensor([1.0, -1.0]) * SIZE[1] / 2)
    return nn.Sequential(nn.Flatten(), layer).eval()


def classifier(kind: str) -> nn.Module:
    votes = smoothed(Level(2), Columns(2), 2)
    if kind == "draws":
        sampling = Sampling(selection=20, estimation=80, alpha=0.05)
        return RandomizedClassifier(Level(2), Columns(2), num_classes=2, sampling=sampling, voting=TopOne(1e-6)).eval()
    if kind == "sums":
        return parse_defense("patchguard:window=2x2,threshold=0.1").wrap(votes, num_classes=2).eval()
    if kind == "masks":
        return parse_defense("patchcleanser:masks=2x3,patch=2x2,hidden=0.5").wrap(Shade().eval(), num_classes=2).eval()
    return votes if kind == "votes" else parse_defense("ibp").wrap(linear(), num_classes=2).eval()


def images() -> Tensor:
    """From black to white, the middle ones contested."""
    levels = torch.tensor([0.0, 0.1, 0.3, 0.48, 0.52, 0.7, 0.9, 1.0])
    x = levels[:, None, None, None].expand(-1, 1, *SIZE).clone()
    x[3, ..., :6], x[4, ..., 6:] = 0.6, 0.4
    return x


@cache
def content(kind: str) -> bytes:
    """The archive of eight images, some of them certified."""
    made, x, threat = classifier(kind), images(), parse_threat(THREAT)
    with torch.no_grad():
        name, evidence = evidence_of(made, x, threat)
    assert name == kind
    file, wrong = KINDS[kind][0](evidence)
    assert not wrong
    assert 0 < file.certified.sum() < NUMBER, file.certified
    prediction = np.where(file.prediction < 0, 0, file.prediction).astype("<i8")
    of_images = {
        "label": np.array([0, 0, 0, 1, 1, 1, 1, 0], "<i8"),
        "prediction": prediction,
        "answered": np.arange(NUMBER) != 2,
        "certified": file.certified.copy(),
        "proved": file.certified.copy(),
        "held": np.arange(NUMBER) != 5,
        "sha256": np.arange(NUMBER * 32, dtype=np.uint8).reshape(NUMBER, 32),
    }
    run = {"num_images": NUMBER, "threat": str(threat), "class_names": ["dark", "light"], "model_sha256": "ab" * 32}
    if kind in ("votes", "sums", "masks", "draws"):
        run["guard"] = file.guard if hasattr(file, "guard") else 1e-6
    about = {
        "run": {**run, "images_sha256": "cd" * 32, "dataset": "toys", "code": "0123", "seed": 3},
        "options": {"patch": THREAT, "batch_size": 4},
        "circumstances": {"device_name": "cpu", "python": "3.13", "version of torch": "2.14"},
        "evidence": kind,
        "without": "",
    }
    return archive(about, of_images, {EVIDENCE: evidence}, {"report.html": b"<p>fine</p>", "run.json": b"{}"})


def members_of(kind: str) -> dict[str, bytes]:
    return read_members(content(kind), 2**28)


def arrays_of(archived: bytes) -> dict[str, np.ndarray]:
    with np.load(BytesIO(archived)) as file:
        return dict(file)


def sealed(members: dict[str, bytes], about: dict[str, Any], images: dict[str, np.ndarray] | None = None) -> bytes:
    """A forger's archive: sizes, checksums, numbers and words are those of what is in it, as far as there are some."""
    images = arrays_of(members[IMAGES]) if images is None else images
    about = {name: value for name, value in about.items() if name != "members"}
    about["numbers"] = numbers(images)
    files = {}
    with suppress(ValueError, KeyError):
        files = {(0, NUMBER): KINDS[about["evidence"]][0](members[EVIDENCE])[0]}
    text = case(about, images, files).encode()
    others = {name: one for name, one in members.items() if name not in (ABOUT, CASE, IMAGES)}
    return pack(about, {**others, IMAGES: packed(images), CASE: text})


def refused(archived: bytes) -> bool:
    """Whether the archive is no bundle, or one from which something does not follow."""
    try:
        return bool(checked(read_members(archived, 2**28)).wrong)
    except Exception:
        return True


def about_of(members: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(members[ABOUT])


def plain_forgeries(kind: str) -> Iterator[Forgery]:
    """Every member and every field of bundle.json changed, by somebody who seals nothing anew."""
    members = members_of(kind)
    about = about_of(members)
    for name, one in members.items():
        for at in sorted({0, 1, len(one) // 3, len(one) // 2, 2 * len(one) // 3, len(one) - 1}):
            yield f"{name} at {at}", partial(_zip, {**members, name: one[:at] + bytes([one[at] ^ 1]) + one[at + 1 :]})
        yield f"{name} is cut", partial(_zip, {**members, name: one[:-1]})
        yield f"{name} goes on", partial(_zip, {**members, name: one + b"\n"})
        yield f"{name} is empty", partial(_zip, {**members, name: b""})
        yield f"{name} is missing", partial(_zip, {own: other for own, other in members.items() if own != name})
        yield f"{name} is renamed", partial(_zip, {own + "x" * (own == name): other for own, other in members.items()})
    yield "one more", partial(_zip, {**members, "more.txt": b"more"})
    for place, changed in _fields(about):
        yield (
            f"{place} is {changed!r:.40}",
            partial(_zip, {**members, ABOUT: json.dumps(_with(about, place, changed)).encode()}),
        )


def sealed_forgeries(kind: str) -> Iterator[Forgery]:
    """Lies of somebody who makes all sizes, checksums, numbers and words anew."""
    members = members_of(kind)
    about, images = about_of(members), arrays_of(members[IMAGES])
    evidence = arrays_of(members[EVIDENCE])
    claim = json.loads(evidence["claim"].tobytes())

    def lied(about: dict[str, Any] = about, images: dict[str, np.ndarray] = images, **changed: Any) -> bytes:
        """With other fields of bundle.json, arrays of the images, arrays of the evidence, or a part of its claim."""
        text = _json({**claim, **changed.pop("claim", {})})
        given = {**evidence, "claim": text, **changed} if changed or text.tobytes() != _json(claim).tobytes() else None
        return sealed(members if given is None else {**members, EVIDENCE: packed(given)}, about, images)

    for i in range(NUMBER):
        if images["certified"][i]:
            other = _at(images, "prediction", i, 1 - images["prediction"][i])
            flipped = _at(evidence, "prediction", i, 1 - evidence["prediction"][i])["prediction"]
            yield f"image {i} of the other class", partial(lied, images=other)
            yield f"image {i} of the other class in both", partial(lied, images=other, prediction=flipped)
            fewer = _at(evidence, "certified", i, False)["certified"]
            yield f"image {i} certified by none", partial(lied, certified=fewer)
            yield f"image {i} proved only", partial(lied, images=_at(images, "certified", i, False))
        else:
            more = _at(_at(images, "certified", i, True), "proved", i, True)
            yield f"image {i} certified", partial(lied, images=more)
            also = _at(evidence, "certified", i, True)
            also = _at(also, "margin", i, 1) if "margin" in also else also
            changed = {name: also[name] for name in ("certified", "margin") if name in also}
            yield f"image {i} certified in both", partial(lied, images=more, **changed)
    for name, number in about["numbers"].items():
        for value in {number + 1, number - 1, 0, 8, -1} - {number}:
            text = json.dumps(_with(about, ("numbers", name), value), indent=1).encode()
            yield f"{name} is {value}", partial(_zip, {**members, ABOUT: text})
    for threat in ([SIZE[0], SIZE[1], 1], [3, 9, 1], [2, 11, 1]):
        told = _with(about, ("run", "threat"), f"{threat[0]}x{threat[1]}")
        yield f"against {threat}", partial(lied, told, claim={"threats": [threat]})
        yield f"the run against {threat}", partial(lied, told)
        yield f"the evidence against {threat}", partial(lied, claim={"threats": [threat]})
    for field, value in (("num_images", 7), ("num_images", 9), ("class_names", ["a"]), ("class_names", list("abc"))):
        yield f"{field} is {value}", partial(lied, _with(about, ("run", field), value))
    for field in sorted(claim.keys() - {"unit", "slack", "seed"}):  # which may be left out, or be anything
        lacking = {name: one for name, one in claim.items() if name != field}
        yield f"claim: {field} missing", partial(sealed, _evidence(members, evidence, lacking), about)
        for what, one in (("null", None), ("a list", [1, [2]]), ("negative", -1), ("huge", 10**30)):
            yield f"claim: {field} {what}", partial(lied, claim={field: one})
    yield "claim: one field more", partial(lied, claim={"more": 1})
    for name, array in evidence.items():
        if name != "claim":
            other = array.astype("<f8" if array.dtype != np.dtype("<f8") else "<f4")
            twice = np.concatenate([array, array])
            for what, one in (("cut", array[:-1]), ("twice", twice), ("a column", array[..., None]), ("floats", other)):
                yield f"{name} {what}", partial(lied, **{name: one})
            yield f"{name} of objects", partial(sealed, {**members, EVIDENCE: _pickled(evidence, name)}, about)
    for name, changed in _lies(kind, evidence, claim):
        yield name, partial(lied, **changed)


def _lies(kind: str, evidence: dict[str, np.ndarray], claim: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Arrays, or a part of the claim, of evidence of one kind that no longer shows what is claimed."""
    certified = np.nonzero(evidence["certified"])[0]
    if kind in ("votes", "sums"):
        for i in certified:
            bits, near = (np.unpackbits(evidence[name])[: NUMBER * 24].reshape(NUMBER, 12, 2) for name in _BITS)
            bits[i], near[i] = bits[i, :, ::-1], 1
            yield f"votes of {i} exchanged", {"cast": np.packbits(bits)}
            yield f"votes of {i} close", {"close": np.packbits(near)}
        for ablation in ("columns:9", "columns:3/2", "rows:2", "blocks:2"):
            yield f"by {ablation}", {"claim": {"ablation": ablation}}
    if kind == "masks":
        for i in certified:
            yield f"masks of {i} name another", {"named": _at(evidence, "named", i, 1 - evidence["named"][i])["named"]}
            for value in (0.0, 1.9e-3, np.nan, np.inf, -1.0):
                yield f"masks of {i} lead by {value}", {"lead": _at(evidence, "lead", i, value)["lead"]}
        for changed in ({"guard": 9.0}, {"rows": [0]}, {"columns": [0, 1]}, {"height": 2}, {"width": 2}, {"count": 2}):
            yield f"masks: {changed}", {"claim": changed}
    if kind == "bounds":
        regions = ("image", "threat", "corners", "bound", "leader")
        for n in range(0, len(evidence["bound"]), max(1, len(evidence["bound"]) // 12)):
            yield f"region {n} left out", {name: np.delete(evidence[name], n, axis=0) for name in regions}
            moved = evidence["corners"][n] + [1, 1, 0, 0]
            other = {"image": 3, "threat": 1, "bound": -1e-9, "leader": 1 - evidence["leader"][n], "corners": moved}
            for what, value in other.items():
                yield f"{what} of region {n} another", {what: _at(evidence, what, n, value)[what]}
    if kind == "draws":
        for i in certified:
            c = int(evidence["prediction"][i])
            for what in ("selected", "counted"):
                own = evidence[what].copy()
                own[i, c], own[i, 1 - c] = 0, 1
                yield f"{what} of {i} fewer", {what: own}
                yield f"{what} of {i} more than drawn", {what: _at(evidence, what, i, 10**6)[what]}
        chances = (
            {"alpha": 1e-300},
            {"alpha": 0.0},
            {"alpha": 1},
            {"ablation": "columns:9"},
            {"ablation": "sparse:40"},
        )
        for changed in (*chances, {"estimation": 10**6}, {"estimation": 10}, {"selection": 3}):
            yield f"draws: {changed}", {"claim": changed}


_BITS = ("cast", "close")


def _evidence(members: dict[str, bytes], evidence: dict[str, np.ndarray], claim: dict[str, Any]) -> dict[str, bytes]:
    return {**members, EVIDENCE: packed({**evidence, "claim": _json(claim)})}


def _zip(members: dict[str, bytes]) -> bytes:
    from zipfile import ZipFile

    with BytesIO() as file:
        with ZipFile(file, "w") as archive:
            for name, one in members.items():
                archive.writestr(name, one)
        return file.getvalue()


def _json(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


def _pickled(evidence: dict[str, np.ndarray], name: str) -> bytes:
    with BytesIO() as file:
        np.savez(file, **{**evidence, name: np.array([print, len], object)}, allow_pickle=True)
        return file.getvalue()


def _at(arrays: dict[str, np.ndarray], name: str, i: int, value: Any) -> dict[str, np.ndarray]:
    changed = arrays[name].copy()
    changed[i] = value
    return {**arrays, name: changed}


def _fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every leaf, with values of other kinds and others of its own."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _fields(one, (*place, name))
        return
    own = [value + 1, value * 2 + 1] if isinstance(value, int | float) else [f"{value}x", ""]
    for other in (*own, None, [], {}, True, [[value]], 10**30):
        if repr(other) != repr(value):
            yield place, other


def _with(value: dict[str, Any], place: tuple[Any, ...], changed: Any) -> dict[str, Any]:
    found = copy.deepcopy(value)
    inner: Any = found
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = changed
    return found

"""A safety case: one archive with what was claimed of a run's images, and evidence from which each claim follows.

`bundle.json` says what was run (`run`, `options`), where (`circumstances`), which `evidence` there is, how many images
have what (`numbers`), and the size and SHA-256 of every other member (`members`). `images.npz` holds for every image
its label, prediction, SHA-256, whether the prediction is certified, whether there is evidence for that (`proved`), and
whether it was right under attack. `evidence/FIRST-STOP.npz` are proofs, each of so many images, which can be checked
one by one too. `CASE.md` says all this in words: it is made of the rest, and made again here. The other members, such
as the run's report, are sealed by their SHA-256, and no claim rests on them.

`check` needs numpy alone, runs nothing, unpickles nothing, and bounds what it reads before it does. Whoever changes a
byte changes the digest of `bundle.json`: compare it with one that came by another way.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

import numpy as np

from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line
from robustpatch.proof import draws, masked, regions, sums
from robustpatch.proof.file import read, strict_object
from robustpatch.proof.footprints import Listed, Threat, brief
from robustpatch.proof.verifier import unproved
from robustpatch.storage.npz import Spec, read_arrays, read_members

ABOUT, IMAGES, CASE = "bundle.json", "images.npz", "CASE.md"
FORMAT = 1
NUMBERS = {
    "images": "images that the run is of",
    "clean": "predicted as labelled, without a patch",
    "certified": "predicted as labelled, and claimed to stay so under every patch of the threat",
    "proved": "of these, with evidence in this archive",
    "certified for any class": "claimed to keep their prediction, right or wrong",
    "under attack": "predicted as labelled under every patch that was tried: measured, and no proof",
}
_ARRAYS: dict[str, Spec] = {
    "label": {"<i8": 1},
    "prediction": {"<i8": 1},
    "answered": {"|b1": 1},
    "certified": {"|b1": 1},
    "proved": {"|b1": 1},
    "held": {"|b1": 1},
    "sha256": {"|u1": 2},
}
_FIELDS = {"format", "run", "options", "circumstances", "evidence", "without", "numbers", "members"}
_EVIDENCE = re.compile(r"evidence/([0-9]{8})-([0-9]{8})\.npz")
_NAME = re.compile(
    r"[A-Za-z0-9_-]{1,80}(?:\.[A-Za-z0-9_-]{1,80}){0,3}(?:/[A-Za-z0-9_-]{1,80}(?:\.[A-Za-z0-9_-]{1,80}){0,3}){0,3}"
)
_MOST_BYTES, _MOST_ABOUT, _MOST_IMAGES = 2**30, 2**22, 2**22
_MOST_SECONDS = 1_800
_SHOWN = 100  # lines of what does not follow


def _votes(content: bytes) -> tuple[Any, list[str]]:
    file = read(content)
    return file, unproved(file)


KINDS: dict[str, tuple[Callable[[bytes], tuple[Any, list[str]]], str]] = {
    # kind of evidence -> what checks a file of it, and what it shows
    "votes": (_votes, "the votes of all ablations, from which the certificate is counted again"),
    "sums": (sums.check, "the votes or scores of all ablations, of which the loudest window is masked again"),
    "masks": (masked.check, "the class under every union of two masks, and by how many logits it leads"),
    "bounds": (
        regions.check,
        "for every region of places a bound by which the class leads; the bounds are the network's",
    ),
    "draws": (draws.check, "how many drawn ablations named each class, from which the bound is computed again"),
}
HEARSAY = (
    "the model has these weights and gives this evidence on these images; who ran it, where, and what attacks found"
)


@dataclass(frozen=True)
class Checked:
    """A bundle that has been read. `wrong`: what does not follow, a line each. `digest`: the SHA-256 of bundle.json."""

    about: dict[str, Any]
    images: dict[str, np.ndarray]
    files: dict[tuple[int, int], Any]
    wrong: list[str]
    digest: str
    size: int

    @property
    def proved(self) -> np.ndarray:
        """The numbers of the images whose certificates have evidence."""
        return np.nonzero(self.images["proved"])[0]


def is_bundle(path: str | Path) -> bool:
    """True for an archive whose first member is `bundle.json`; of anything else nothing is read."""
    try:
        with open(path, "rb") as file:
            return file.read(30 + len(ABOUT))[30:] == ABOUT.encode()
    except (OSError, ValueError):
        return False


def check(path: str | Path, seconds: float = _MOST_SECONDS) -> Checked:
    """Check every claim of a bundle. Raises `ValueError`, or an error of `zipfile`, `zlib` or the operating system, for
    what is no bundle, and for one whose evidence takes longer than so many seconds.
    """
    return checked(read_members(path, _MOST_BYTES), seconds)


def checked(members: Mapping[str, bytes], seconds: float = _MOST_SECONDS) -> Checked:
    """The same of the members of an archive."""
    about = _about(members)
    for name, content in members.items():
        if name != ABOUT and about["members"][name] != [len(content), sha256(content).hexdigest()]:
            raise ValueError(f"{name} is not as bundle.json says: its size or its SHA-256 is another")
    images = _images(members[IMAGES])
    wrong, files, many = list[str](), dict[tuple[int, int], Any](), len(images["label"])
    ends = time.monotonic() + seconds
    for name in sorted(members):
        if (match := _EVIDENCE.fullmatch(name)) is not None:
            if time.monotonic() > ends:
                raise ValueError(f"its evidence takes more than {seconds:g} seconds to check")
            first, stop = map(int, match.groups())
            file, lines = _check_file(about, name, members[name], stop - first)
            wrong += [f"{name}: {line}" for line in lines]
            files[first, stop] = file
            wrong += (
                _differing(images, file, first, stop) if stop <= many else [f"{name} is of images that are not there"]
            )
    parts = sorted(files)
    if any(one[1] > other[0] for one, other in pairwise(parts)):
        wrong.append("two files of evidence are of the same image")
    covered = np.zeros(many, bool)
    for first, stop in parts:
        covered[first:stop] = True
    wrong += [f"image {i}: evidence is claimed, and there is none" for i in np.nonzero(images["proved"] & ~covered)[0]]
    wrong += [
        f"image {i}: evidence is claimed of a certificate that is not"
        for i in np.nonzero(images["proved"] & ~images["certified"])[0]
    ]
    own = numbers(images)
    wrong += [
        f"{name}: {brief(about['numbers'].get(name))} is claimed, but {value} follow"
        for name, value in own.items()
        if about["numbers"].get(name) != value
    ]
    if about["run"].get("num_images") != many:
        wrong.append(f"run: num_images is {brief(about['run'].get('num_images'))}, but there are {many} images")
    if bool(files) != (about["evidence"] != "none") and images["proved"].any():
        wrong.append(f"evidence is {about['evidence']!r}, with {len(files)} files of it")
    if bool(about["without"]) != bool((images["certified"] & ~images["proved"]).any()):
        wrong.append(f"without is {brief(about['without'])}, which is to say why certificates have no evidence")
    if members[CASE] != case(about, images, files).encode():
        wrong.append(f"{CASE} is not what follows from the rest")
    size = sum(map(len, members.values()))
    return Checked(about, images, files, wrong, sha256(members[ABOUT]).hexdigest(), size)


def told(found: Checked) -> tuple[list[str], int]:
    """The outcome in words, line by line, and the exit status: 1 where something does not follow."""
    own, run = numbers(found.images), found.about["run"]
    against = next((threats_text(file.threats) for file in found.files.values()), str(run.get("threat")))
    lines = [
        f"claim: of {own['images']} images, {own['certified']} predicted as labelled and certified against {against}, "
        f"{own['proved']} of them with evidence ({found.about['evidence']})",
        f"digest of bundle.json: {found.digest}",
        f"not shown by this archive: {HEARSAY}",
    ]
    bare = own["certified for any class"] - int(found.images["proved"].sum())
    if bare:
        lines.append(f"CLAIMED WITHOUT EVIDENCE: {bare} certificates ({found.about['without']})")
    lines += found.wrong[:_SHOWN] + [f"… and {len(found.wrong) - _SHOWN} more"] * (len(found.wrong) > _SHOWN)
    lines += [] if found.wrong else ["every claim that is said to have evidence follows from it"]
    return [one_line(line, 1_000) for line in lines], 1 if found.wrong else 0


def numbers(images: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The counts of images (`NUMBERS`)."""
    right = (images["label"] == images["prediction"]) & images["answered"]
    found = [
        right | True,
        right,
        right & images["certified"],
        right & images["certified"] & images["proved"],
        images["certified"],
        right & images["held"],
    ]
    return {name: int(some.sum()) for name, some in zip(NUMBERS, found, strict=True)}


def case(about: Mapping[str, Any], images: Mapping[str, np.ndarray], files: Mapping[tuple[int, int], Any]) -> str:
    """The safety case in words, as Markdown."""
    own, run = numbers(images), about["run"]
    threats = next((threats_text(file.threats) for file in files.values()), one_line(run.get("threat"), 200))
    share = 100 / max(1, own["images"])
    model = run.get("checkpoint", run.get("model", "of Python's own"))
    lines = [
        "# Safety case",
        "",
        f"Model {plain(model)}, weights SHA-256 {plain(run.get('model_sha256'))}; dataset {plain(run.get('dataset'))}, "
        f"images SHA-256 {plain(run.get('images_sha256'))}.",
        "",
        f"Threat: {plain(threats)}, any content, anywhere that the threat allows.",
        "",
        "| | images | % | how it follows |",
        "|---|---:|---:|---|",
        *(f"| {name} | {value} | {share * value:.2f} | {NUMBERS[name]} |" for name, value in own.items()),
        "",
        f"Evidence: {plain(about['evidence'])}"
        + (f": {KINDS[about['evidence']][1]}." if about["evidence"] in KINDS else "."),
    ]
    bare = np.nonzero(images["certified"] & ~images["proved"])[0]
    if len(bare):
        some = ", ".join(map(str, bare[:20])) + (", …" if len(bare) > 20 else "")
        lines += [
            "",
            f"**Claimed without evidence**: {len(bare)} certificates (images {some}). {plain(about['without'])}",
        ]
    lines += ["", f"Not shown by this archive: {HEARSAY}.", "", "| circumstance | |", "|---|---|"]
    lines += [f"| {plain(name)} | {plain(value)} |" for name, value in sorted(about["circumstances"].items())]
    for table in (run, about["options"]):
        lines += ["", "| told of the run | |", "|---|---|"]
        lines += [f"| {plain(name)} | {plain(value)} |" for name, value in sorted(table.items())]
    return "\n".join(lines) + "\n"


def threats_text(against: tuple[Threat, ...]) -> str:
    """The threats of a file of evidence: of its pixels, whatever their name was."""
    return " or ".join(
        " & ".join(f"{count}*{patch}" if count > 1 else f"{patch}" for patch, count in threat) for threat in against
    )


def pack(about: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The archive of these members, `bundle.json` first, the same bytes from the same content."""
    listed = {name: [len(content), sha256(content).hexdigest()] for name, content in sorted(members.items())}
    text = _written({**about, "members": listed})
    with BytesIO() as file:
        with ZipFile(file, "w", ZIP_STORED) as archive:
            for name, content in ((ABOUT, text), *sorted(members.items())):
                archive.writestr(ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
        return file.getvalue()


def _written(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, indent=1, allow_nan=False).encode()


def _about(members: Mapping[str, bytes]) -> dict[str, Any]:
    """bundle.json, every field there and of its type. Raises `ValueError`."""
    missing = {ABOUT, IMAGES, CASE} - members.keys()
    if missing or len(members[ABOUT]) > _MOST_ABOUT:
        raise ValueError(f"it has no {', '.join(sorted(missing)) or 'bundle.json that is small enough'}")
    about = strict_object(members[ABOUT])
    if about.keys() != _FIELDS or about["format"] != FORMAT or type(about["format"]) is not int:
        raise ValueError(f"bundle.json has the fields {brief(sorted(about))} and format {brief(about.get('format'))}")
    if _written(about) != members[ABOUT]:
        raise ValueError("bundle.json is not written as it is by what makes it")
    for name in ("run", "options", "circumstances", "numbers", "members"):
        if not isinstance(about[name], dict):
            raise ValueError(f"{name} of bundle.json is no table")
    if about["numbers"].keys() != NUMBERS.keys() or not all(type(one) is int for one in about["numbers"].values()):
        raise ValueError(f"numbers of bundle.json are {brief(about['numbers'])}; {', '.join(NUMBERS)} are needed")
    if about["evidence"] not in (*KINDS, "none") or not isinstance(about["without"], str):
        raise ValueError(f"evidence is {brief(about['evidence'])}; one of {', '.join(KINDS)} or none is needed")
    if about["members"].keys() != members.keys() - {ABOUT}:
        raise ValueError("bundle.json does not list the members that are there")
    for name in members:
        if not _NAME.fullmatch(name):
            raise ValueError(f"a member is called {one_line(name, 80)!r}, as none is that is written here")
    return about


def _images(content: bytes) -> dict[str, np.ndarray]:
    images = read_arrays(content, _ARRAYS)
    many = len(images["label"])
    if not 0 < many <= _MOST_IMAGES or any(len(one) != many for one in images.values()):
        raise ValueError(f"{IMAGES} has arrays of different lengths, or of no image")
    if images["sha256"].shape[1] != 32:
        raise ValueError(f"{IMAGES} has no SHA-256 of each image")
    return images


def _check_file(about: Mapping[str, Any], name: str, content: bytes, images: int) -> tuple[Any, list[str]]:
    if about["evidence"] not in KINDS:
        raise ValueError(f"{name} is there, but evidence is {about['evidence']!r}")
    file, wrong = KINDS[about["evidence"]][0](content)
    if len(file.prediction) != images:
        wrong = [*wrong, f"it is of {len(file.prediction)} images, and its name of {images}"]
    wrong = [*wrong, *_other_run(about["run"], file)]
    return file, wrong


def _other_run(run: Mapping[str, Any], file: Any) -> list[str]:
    """The run's own words about threat, ablation, guard and classes that contradict the evidence, a line each."""
    wrong = []
    rectangles = not any(isinstance(patch, Listed) for threat in file.threats for patch, _ in threat)
    told = threats_text(file.threats).replace(" or ", ",")
    if rectangles and run.get("threat") != told and not re.fullmatch(r"[0-9.]+%.*", str(run.get("threat"))):
        wrong.append(f"its threat is {told}, and the run's {brief(run.get('threat'))}")
    classes = file.shape[2] if hasattr(file, "shape") else file.classes
    if isinstance(run.get("class_names"), list) and len(run["class_names"]) != classes:
        wrong.append(f"it is of {classes} classes, and the run of {len(run['class_names'])}")
    for field in ("ablation", "guard"):
        own = getattr(file, field, None)
        if own is not None and field in run and run[field] is not None and run[field] != own:
            wrong.append(f"its {field} is {own}, and the run's {brief(run[field])}")
    return wrong


def _differing(images: Mapping[str, np.ndarray], file: Any, first: int, stop: int) -> list[str]:
    """Images of which the run says something else than the evidence that is claimed for them."""
    some = slice(first, stop)
    if len(file.prediction) != stop - first:
        return []
    claimed = images["proved"][some]
    other = claimed & (~file.certified | (file.prediction != images["prediction"][some]))
    return [
        f"image {first + i}: its evidence is of another prediction, or certifies none" for i in np.nonzero(other)[0]
    ]

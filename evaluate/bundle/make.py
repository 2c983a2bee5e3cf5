"""A finished run -> the members of its safety case."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from evaluate.bundle.evidence import evidence_of, packed
from evaluate.cli.options import Options
from evaluate.runs.completed_run import CompletedRun
from evaluate.runs.reloading import loaded_again
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.proof.bundle import CASE, FORMAT, IMAGES, KINDS, case, numbers, pack
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.within_masks import bound

_SEALED = ("run.json", "summary.json", "report.html", "report.md", "report.json")
_CIRCUMSTANCES = ("command", "python", "device_name", "threads", "seconds", "measured_deviation", "float32_deviation")
_AT_ONCE = 250  # images of a file of evidence


def bundle(run: CompletedRun, options: Options, on_progress: Callable[[int], None] = lambda _: None) -> bytes:
    """The archive of a run made with these options, with evidence for every certificate that has some. Raises
    `InvalidInput`.
    """
    model, images = loaded_again(f"run {run.output}", run.claim, options)
    threat = bound(parse_threat(options.patch, images.image_shape[1:]), images, len(run.records))
    kinds, files, without, proved = set[str](), dict[str, bytes](), list[str](), np.zeros(len(run.records), bool)
    for first in range(0, len(run.records), _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, len(run.records)))
        try:
            kind, content, holds = _part(run, as_classifier(model), images, threat, options, some)
            kinds.add(kind)
            files[f"evidence/{some.start:08d}-{some.stop:08d}.npz"] = content
            proved[some.start : some.stop] = holds
        except InvalidInput as error:
            without.append(str(error))
        on_progress(some.stop)
    store = Store(run.output)
    about = {
        "run": _plain(run.claim),
        "options": _plain({**options.given(), "model": run.claim.get("model")}),
        "circumstances": _circumstances(store),
        "evidence": kinds.pop() if kinds else "none",
        "without": "; ".join(dict.fromkeys(without)) or "the evidence does not show what the run claims",
    }
    of_images = _images(run, images, proved)
    about["without"] *= bool((of_images["certified"] & ~proved).any())
    kept = [name for name in _SEALED if store.exists(name)] + store.names("records", ".parquet")
    return archive(about, of_images, files, {name: store.read(name) for name in kept})


def archive(
    about: dict[str, Any], images: dict[str, np.ndarray], files: dict[str, bytes], sealed: dict[str, bytes]
) -> bytes:
    """The archive of what is told `about` a run, its images, files of evidence, and others; numbers and words are made
    of these.
    """
    check = KINDS[about["evidence"]][0] if files else None
    parts = {_ends(name): check(content)[0] for name, content in files.items()} if check is not None else {}
    about = {"format": FORMAT, **about, "numbers": numbers(images)}
    text = case(about, images, parts).encode()
    return pack(about, {**sealed, **files, IMAGES: packed(images), CASE: text})


def _part(
    run: CompletedRun, classifier: Classifier, images: ImageSet, threat: Threat, options: Options, some: range
) -> tuple[str, bytes, np.ndarray]:
    """The evidence of some images, and for which of them it shows what the run claims. Raises `InvalidInput`."""
    if options.top_k > 1:
        raise InvalidInput(f"top_k is {options.top_k}; evidence is kept of certificates of the first class")
    x, _ = images.batch(some)
    with torch.no_grad():
        kind, content = evidence_of(classifier, x.to(options.device), threat)
    file, wrong = KINDS[kind][0](content)
    if wrong:
        raise InvalidInput(f"the evidence of a {type(classifier.given).__name__} does not show it: {wrong[0]}")
    records = [run.records[i] for i in some]
    prediction = np.array([record.prediction for record in records])
    certified = np.array([record.certified for record in records])
    return kind, content, certified & file.certified & (file.prediction == prediction)


def _images(run: CompletedRun, images: ImageSet, proved: np.ndarray) -> dict[str, np.ndarray]:
    records = run.records
    digests = [np.frombuffer(sha256(images.stored(record.index)).digest(), np.uint8) for record in records]
    return {
        "label": np.array([record.label for record in records], "<i8"),
        "prediction": np.array([record.prediction for record in records], "<i8"),
        "answered": np.array([record.predicted is None or record.predicted >= 0 for record in records]),
        "certified": np.array([record.certified for record in records]),
        "proved": proved,
        "held": np.array([not record.broken for record in records]),
        "sha256": np.stack(digests),
    }


def _circumstances(store: Store) -> dict[str, str]:
    """The machine and the versions, as the run noted them."""
    try:
        summary = read_object(store.read("summary.json"))
    except (FileNotFoundError, ValueError):
        return {}
    versions = summary.get("versions")
    found = {f"version of {name}": value for name, value in versions.items()} if isinstance(versions, dict) else {}
    return {name: str(value) for name, value in {**{n: summary.get(n) for n in _CIRCUMSTANCES}, **found}.items()}


def _plain(value: Any) -> Any:
    """The value as a bundle's JSON: whole numbers of many digits as texts, and nothing that is left out."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, int) and len(str(value)) > 18 else value


def _ends(name: str) -> tuple[int, int]:
    first, _, stop = name.removeprefix("evidence/").removesuffix(".npz").partition("-")
    return int(first), int(stop)

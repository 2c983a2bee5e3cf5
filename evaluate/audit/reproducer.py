"""A finding on disk: its inputs in a safetensors file, and what shows it again."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_bytes
from torch import Tensor

from attacks import Proposal, judge
from evaluate.audit.batches import batch_shows_again
from evaluate.audit.certifier import AuditedCertifier
from evaluate.audit.contradictions import CHECKS
from evaluate.audit.dictated_attack import votes_show_again
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Factory, Harness, view_findings
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.threats.parse import threat_from_dict

WRITTEN = ("report.md", "audit.json")  # beside the findings, by the command line
_NUMBERED = re.compile(r"\d\d-.*\.safetensors")
_CLASSES = 2**17


def clear(output: Store) -> None:
    """Remove the findings and the report of an earlier audit, so that none is taken for one of the new."""
    assert output.local is not None
    for path in output.local.iterdir():
        if path.name in WRITTEN or (_NUMBERED.match(path.name) and _is_finding(path)):
            output.remove(path.name)


def _is_finding(path: Path) -> bool:
    try:
        load(path)
        return True
    except InvalidInput:
        return False


def save(finding: Finding, output: Store, number: int, name: str | None = None) -> Finding:
    """Write `output`/NUMBER-NAME.safetensors, named after the check if not given. Returns the finding with its absolute
    path.
    """
    name = f"{number:02d}-{name or finding.check.replace(' ', '-')}.safetensors"
    about = {"check": finding.check, "severity": finding.severity, "sentence": finding.sentence}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in finding.tensors.items()}
    output.write(name, as_bytes(tensors, {"finding": json.dumps({**about, **finding.note})}))
    assert output.local is not None
    return replace(finding, path=output.local.resolve() / name)


def again(path: Path, asked: dict[str, Any]) -> str:
    """The command that shows the finding saved there once more, from any folder."""
    named = [asked["target"]] if asked.get("target") else []
    named += ["--factory", asked["factory"]] if asked.get("factory") else []
    start = f"cd {shlex.quote(asked['folder'])} && " if asked.get("folder") else ""
    return f"{start}robustpatch audit {shlex.join([*named, '--replay', str(path)])}"


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what was written beside them. Raises `InvalidInput` where there is no finding."""
    try:
        with safe_open(path, framework="pt") as file:
            note = read_object(file.metadata()["finding"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        _check(tensors, note)
        return tensors, note
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no finding of an audit ({one_line(error, 200)})") from error


def _check(tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Raises `ValueError` or `KeyError` where a field is missing, or of another type or size than a finding has."""

    def need(fits: bool, name: str, value: Any) -> None:
        if not fits:
            raise ValueError(f"its {name} is {one_line(repr(value), 60)}")

    def whole(value: Any) -> bool:
        return type(value) is int and abs(value) < 2**31

    for name in ("check", "severity", "sentence"):
        need(isinstance(note[name], str), name, note[name])
    for name in ("target", "factory", "folder"):
        need(isinstance(note.get(name), str | None), name, note.get(name))
    kind, x = note["kind"], tensors["x"]
    need(kind in ("attack", "batches", "consistency", "views", "votes"), "kind", kind)
    need(whole(note["classes"]) and 2 <= note["classes"] <= _CLASSES, "classes", note["classes"])
    need(isinstance(note.get("alerts", False), bool) or whole(note["alerts"]), "alerts", note.get("alerts"))
    several = kind in ("batches", "consistency")
    need(x.is_floating_point() and x.ndim == 3 + several and x.numel() > 0, "x", tuple(x.shape))
    (threat, *others) = threat_from_dict(note["threat"]).threats
    need(not others, "threat", note["threat"])
    threat.check_fits(*x.shape[-2:])
    if kind == "consistency":
        need(note["check"] in CHECKS, "check", note["check"])
    if kind in ("attack", "votes"):
        x_adv, corners = tensors["x_adv"], tensors["corners"]
        need(x_adv.shape == x.shape and x_adv.dtype == x.dtype, "x_adv", tuple(x_adv.shape))
        integers = not corners.is_floating_point() and not corners.is_complex()
        need(integers and corners.shape == (threat.count, 2), "corners", tuple(corners.shape))
    if kind in ("batches", "votes"):
        keys, answers = tensors["keys"], tensors["answers"]
        fits = answers.ndim == keys.ndim == 2 and len(answers) == len(keys) + 1
        need(fits and answers.shape[1] == note["classes"], "answers", tuple(answers.shape))
        need(whole(note.get("asks", 1)), "asks", note.get("asks"))
    if kind == "batches":
        rows = [note["origin"], *note["history"]]
        need(all(whole(row) and 0 <= row < len(x) for some in rows for row in some), "history", rows)


def replay(path: str | Path, target: Any = None, factory: Factory | None = None) -> bool:
    """Tells whether the saved finding shows again, with the certifier (or the factory) that it was found with."""
    tensors, note = load(path)
    threat, kind = threat_from_dict(note["threat"]).threats[0], note["kind"]
    alerts = note.get("alerts", False)
    x = tensors["x"] if tensors["x"].ndim == 4 else tensors["x"][None]
    if kind in ("votes", "views", "batches"):
        if factory is None:
            raise InvalidInput(f"replay is {path}, found with a factory; give that factory")
        channels, height, width = x.shape[1:]
        harness = Harness(factory, note["classes"], (channels, height, width), x=x[:1], alerts=alerts)
        if kind == "views":
            return bool(view_findings(harness, threat))
        again = votes_show_again if kind == "votes" else batch_shows_again
        return again(harness, threat, tensors, note)
    if target is None:
        raise InvalidInput(f"replay is {path}, found with a certifier; give that certifier")
    subject = AuditedCertifier.of(target, note["classes"], x, alerts)
    claim = subject.certify(x, threat)
    if kind == "consistency":
        return any(CHECKS[note["check"]](subject, x, threat, claim))
    clean = subject.predict(x)
    none = torch.zeros(1)
    proposal = Proposal(tensors["x_adv"][None], tensors["corners"][None], none.long(), none)
    outcome = judge(subject, x, claim.prediction, threat, proposal)
    broken = outcome.broken & subject.changed(outcome.prediction, claim.prediction)
    return bool(claim.certified[0]) and bool(broken[0] | subject.changed(clean, claim.prediction)[0])

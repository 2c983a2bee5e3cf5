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

from attacks import Proposal, judge
from evaluate.audit.batches import batch_shows_again
from evaluate.audit.consistency import CHECKS
from evaluate.audit.finding import Finding
from evaluate.audit.fitting import check_finding
from evaluate.audit.harness import Factory, Stand, view_findings
from evaluate.audit.interface import AuditedCertifier
from evaluate.audit.trial import shows_again
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.threats.parse import threat_from_dict

WRITTEN = ("report.md", "audit.json")  # beside the findings, by the command line
_NUMBERED = re.compile(r"\d\d-.*\.safetensors")


def clear(output: Store) -> None:
    """Remove the findings and the report that an earlier audit wrote there: none is to be taken for one of the new."""
    assert output.local is not None
    for path in _written(output.local):
        output.remove(path.name)


def _written(output: Path) -> list[Path]:
    found = [path for path in output.glob("*.safetensors") if _NUMBERED.match(path.name) and _is_finding(path)]
    return [*found, *(output / name for name in WRITTEN if (output / name).is_file())]


def _is_finding(path: Path) -> bool:
    try:
        load(path)
        return True
    except InvalidInput:
        return False


def save(finding: Finding, output: Store, number: int, asked: dict[str, Any]) -> Finding:
    """Write `output`/NUMBER-CHECK.safetensors; `asked` names the certifier. The finding with its absolute path."""
    name = f"{number:02d}-{finding.check.replace(' ', '-')}.safetensors"
    about = {"check": finding.check, "severity": finding.severity, "sentence": finding.sentence}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in finding.tensors.items()}
    output.write(name, as_bytes(tensors, {"finding": json.dumps({**about, **finding.note, **asked})}))
    assert output.local is not None
    return replace(finding, path=output.local.resolve() / name)


def again(path: Path, asked: dict[str, Any]) -> str:
    """The command that shows the finding saved there once more, from any folder."""
    named = [asked["target"]] if asked.get("target") else []
    named += ["--factory", asked["factory"]] if asked.get("factory") else []
    start = f"cd {shlex.quote(asked['folder'])} && " if asked.get("folder") else ""
    return f"{start}python -m evaluate.audit {shlex.join([*named, '--replay', str(path)])}"


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, and what was written beside them. Raises `InvalidInput` where there is no finding."""
    try:
        with safe_open(path, framework="pt") as file:
            note = read_object(file.metadata()["finding"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dict
        check_finding(tensors, note)
        return tensors, note
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no finding of an audit ({one_line(error, 200)})") from error


def replay(path: str | Path, target: Any = None, factory: Factory | None = None) -> bool:
    """Tells whether the saved finding shows again, with the certifier (or the factory) that it was found with."""
    tensors, note = load(path)
    threat, kind = threat_from_dict(note["threat"]).threats[0], note["kind"]
    alerts = note.get("alerts", False)
    if kind in ("votes", "views", "batches"):
        if factory is None:
            raise InvalidInput(f"replay is {path}, found with a factory; give that factory")
        x = tensors["x"] if tensors["x"].ndim == 3 else tensors["x"][0]
        channels, height, width = x.shape
        stand = Stand(factory, note["classes"], (channels, height, width), x=x[None], alerts=alerts)
        if kind == "views":
            return bool(view_findings(stand, threat))
        again = shows_again if kind == "votes" else batch_shows_again
        return again(stand, threat, tensors, note)
    if target is None:
        raise InvalidInput(f"replay is {path}, found with a certifier; give that certifier")
    x = tensors["x"] if kind == "consistency" else tensors["x"][None]
    subject = AuditedCertifier.of(target, note["classes"], x, alerts)
    if kind == "consistency":
        return any(CHECKS[note.get("by", note["check"])](subject, x, threat, subject.certify(x, threat)))
    x_adv = tensors["x_adv"][None]
    claim, clean = subject.certify(x, threat), subject.predict(x)
    none = torch.zeros(1)
    proposal = Proposal(x_adv, tensors["corners"][None], none.long(), none)
    outcome = judge(subject, x, claim.prediction, threat, proposal)
    broken = outcome.broken & subject.changed(outcome.prediction, claim.prediction)
    return bool(claim.certified[0]) and bool(broken[0] | subject.changed(clean, claim.prediction)[0])

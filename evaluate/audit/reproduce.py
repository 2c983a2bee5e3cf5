"""A finding on disk: its inputs in a safetensors file, and what shows it again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from attacks import Proposal, judge
from evaluate.audit.batches import batch_shows_again
from evaluate.audit.consistency import CHECKS
from evaluate.audit.finding import Finding
from evaluate.audit.interface import Subject
from evaluate.audit.stand import Factory, Stand, view_findings
from evaluate.audit.trial import shows_again
from robustpatch.errors import InvalidInput
from robustpatch.threat import PatchThreat


def save(finding: Finding, output: Path, number: int, asked: dict[str, Any]) -> Finding:
    """Write `output`/NUMBER-CHECK.safetensors; `asked` is what names the certifier. The finding with its path."""
    path = output / f"{number:02d}-{finding.check.replace(' ', '-')}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"check": finding.check, "severity": finding.severity, "sentence": finding.sentence}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in finding.tensors.items()}
    save_file(tensors, path, metadata={"finding": json.dumps({**about, **finding.note, **asked})})
    return replace(finding, path=path)


def load(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, and what was written beside them. Raises `InvalidInput` where there is no finding."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["finding"])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no finding of an audit ({error})") from error


def replay(path: str | Path, target: Any = None, factory: Factory | None = None) -> bool:
    """Whether the finding saved there shows again, with the certifier (or the factory) that it was found with."""
    tensors, note = load(path)
    threat, kind = PatchThreat(*note["threat"]), note["kind"]
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
    subject = Subject.of(target, note["classes"], x, alerts)
    if kind == "consistency":
        return any(CHECKS[note.get("by", note["check"])](subject, x, threat, subject.certify(x, threat)))
    x_adv = tensors["x_adv"][None]
    claim, clean = subject.certify(x, threat), subject.predict(x)
    none = torch.zeros(1)
    proposal = Proposal(x_adv, tensors["corners"][None], none.long(), none)
    outcome = judge(subject, x, claim.prediction, threat, proposal)
    broken = outcome.broken & subject.changed(outcome.prediction, claim.prediction)
    return bool(claim.certified[0]) and bool(broken[0] | subject.changed(clean, claim.prediction)[0])

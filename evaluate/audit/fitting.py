"""Checks that a file holds everything that a finding needs, before any certifier is asked about it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from evaluate.audit.consistency import CHECKS
from robustpatch.cli.text import one_line
from robustpatch.threats.parse import threat_from_dict

_KINDS = ("attack", "batches", "consistency", "views", "votes")
_TEXTS = ("check", "severity", "sentence")
_CLASSES = 2**17


def check_finding(tensors: dict[str, Tensor], note: dict[str, Any]) -> None:
    """Raises `ValueError` or `KeyError` where a field is missing, or of another type or size than a finding has."""
    for name in _TEXTS:
        _need(isinstance(note[name], str), name, note[name])
    kind, x = note["kind"], tensors["x"]
    _need(kind in _KINDS, "kind", kind)
    _need(_whole(note["classes"]) and 2 <= note["classes"] <= _CLASSES, "classes", note["classes"])
    _need(isinstance(note.get("alerts", False), bool) or _whole(note["alerts"]), "alerts", note.get("alerts"))
    for name in ("target", "factory", "folder"):
        _need(isinstance(note.get(name), str | None), name, note.get(name))
    several = kind in ("batches", "consistency")
    _need(x.is_floating_point() and x.ndim == 3 + several and x.numel() > 0, "x", tuple(x.shape))
    (threat, *others) = threat_from_dict(note["threat"]).threats
    _need(not others, "threat", note["threat"])
    threat.check_fits(*x.shape[-2:])
    if kind == "consistency":
        by = note.get("by", note["check"])
        _need(isinstance(by, str) and by in CHECKS, "check", by)
    if kind in ("attack", "votes"):
        x_adv, corners = tensors["x_adv"], tensors["corners"]
        _need(x_adv.shape == x.shape and x_adv.dtype == x.dtype, "x_adv", tuple(x_adv.shape))
        whole = not corners.is_floating_point() and not corners.is_complex()
        _need(whole and corners.shape == (threat.count, 2), "corners", tuple(corners.shape))
    if kind in ("batches", "votes"):
        keys, answers = tensors["keys"], tensors["answers"]
        fits = answers.ndim == keys.ndim == 2 and len(answers) == len(keys) + 1
        _need(fits and answers.shape[1] == note["classes"], "answers", tuple(answers.shape))
        _need(_whole(note.get("asks", 1)), "asks", note.get("asks"))
    if kind == "batches":
        rows = [note["origin"], *note["history"]]
        _need(all(_whole(row) and 0 <= row < len(x) for some in rows for row in some), "history", rows)


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**31


def _need(fits: bool, name: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"its {name} is {one_line(repr(value), 60)}")

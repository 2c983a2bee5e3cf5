"""Certificates as they come from anybody's `certify`, looked at before a word of them is believed."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor

from robustpatch.certificates.exact import Certificate
from robustpatch.errors import InvalidInput

_FIELDS = ("prediction", "certified", "margin", "guard", "close", "confidence", "evidence", "unit")


def checked(certificate: Any, images: int, classes: int | None = None) -> Certificate:
    """The certificate of so many images, if it is one; `classes`: how many there are, where that is known.

    Raises `InvalidInput`, naming the field, unless: prediction is Int[B] of classes, or -1 where not certified;
    certified is Bool[B]; margin is None or numbers [B] without NaN; close is Int[B] of at least 0; guard is finite and
    not negative; confidence is None or lies strictly between 0 and 1; unit is a whole number of at least 1.
    """
    for name in _FIELDS:
        if not hasattr(certificate, name):
            raise InvalidInput(
                f"certify returned a {type(certificate).__name__} without {name}; return a robustpatch Certificate"
            )
    prediction = _row("prediction", certificate.prediction, images, "integers")
    certified = _row("certified", certificate.certified, images, "booleans")
    close = _row("close", certificate.close, images, "integers")
    highest = (classes or 2**62) - 1
    if images and (int(prediction.min()) < -1 or int(prediction.max()) > highest):
        raise _wrong("prediction", f"{int(prediction.min())} to {int(prediction.max())}", "classes, or -1 to abstain")
    if bool((certified & (prediction < 0).to(certified.device)).any()):
        raise _wrong("certified", "True where the prediction is -1", "False where the prediction abstains")
    if images and int(close.min()) < 0:
        raise _wrong("close", str(int(close.min())), "counts of at least 0")
    if certificate.margin is not None:
        margin = _row("margin", certificate.margin, images, "numbers")
        if bool(torch.isnan(margin).any()):
            raise _wrong("margin", "NaN", "numbers, or None where there are none")
    guard, confidence, unit = certificate.guard, certificate.confidence, certificate.unit
    if not _number(guard) or not isfinite(guard) or guard < 0:
        raise _wrong("guard", repr(guard), "a finite number of at least 0")
    if confidence is not None and not (_number(confidence) and 0 < confidence < 1):
        raise _wrong("confidence", repr(confidence), "a number strictly between 0 and 1, or None for a proof")
    if isinstance(unit, bool) or not isinstance(unit, int) or unit < 1:
        raise _wrong("unit", repr(unit), "a whole number of at least 1")
    return certificate


def _row(name: str, value: Any, images: int, kind: str) -> Tensor:
    """A tensor [B] of that kind."""
    if not isinstance(value, Tensor):
        raise _wrong(name, f"a {type(value).__name__}", f"a tensor [{images}] of {kind}")
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    right = {"integers": whole, "booleans": value.dtype == torch.bool, "numbers": whole or value.is_floating_point()}
    if value.shape != (images,) or not right[kind]:
        raise _wrong(name, f"{value.dtype} {list(value.shape)}", f"a tensor [{images}] of {kind}")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: str, needed: str) -> InvalidInput:
    return InvalidInput(f"{name} of the certificate is {value}; certify has to return {needed}")

"""Calls of foreign code in isolation: it is given copies of our tensors, and its answers are checked and copied.

A model that normalises its images in place, or a certifier that ablates them in place, computes a function of what it
is given, and that function is what is certified and attacked. Were it given the very images of the evaluation, all that
follows would be asked about what it left of them. So whoever calls code of others passes `x.clone()`: gradients reach
the original, and the copy is no leaf of the graph, so that it may be written to with gradients as well.
"""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.top_k import TopKCertificate
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

D = TypeVar("D")


@torch.no_grad()
def predict(classifier: Classifier, x: Tensor) -> Int[Tensor, " B"]:
    """The classifier's `predict`, -1 where it abstains. Without gradients, as `certify`: a model may compute something
    else where gradients are wanted.

    Raises `InvalidInput` for anything but one whole number for each image, and for outputs of which none is the largest
    number (see `votes.first_argmax`): an attack that meets them stops, since they are neither the prediction nor
    another.
    """
    return classes_of(classifier.predict(x.clone()), x, f"predict of {_name(classifier)}")


@torch.no_grad()
def predict_with_cost(classifier: Classifier, x: Tensor) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The same, and the evaluations it took of each image; see `Classifier.predict_with_cost`."""
    prediction, spent = classifier.predict_with_cost(x.clone())
    return classes_of(prediction, x, f"predict of {_name(classifier)}"), spent.clone()


@torch.no_grad()
def certify(classifier: CertifiedClassifier, x: Tensor, threat: Threat, *method: str) -> Certificate:
    """The classifier's own `certify` of a copy of the images [B,C,H,W]; the answer is a copy too.

    Raises `InvalidInput`, naming the field, for what is no certificate of these images (see `checked`), and for a
    certificate of another threat: what it says of that one is no claim about this one.
    """
    return _accepted(classifier, classifier.certify(x.clone(), threat, *method), len(x), threat, "certify")


@torch.no_grad()
def certify_paper(classifier: CertifiedClassifier, x: Tensor, threat: Threat, exact: Certificate) -> Certificate | None:
    """The classifier's `certify_paper`, asked and checked as `certify` is; None where it has no such certificate."""
    found = classifier.certify_paper(x.clone(), threat, exact)
    return None if found is None else _accepted(classifier, found, len(x), threat, "certify_paper")


@torch.no_grad()
def certify_top_k(
    classifier: CertifiedClassifier, x: Tensor, y: Int[Tensor, " B"], threat: Threat, k: int
) -> TopKCertificate:
    """The classifier's `certify_top_k` of copies; the answer is a copy too.

    Raises `InvalidInput` for what is no such certificate of these images, classes, k and threat.
    """
    name, found = _name(classifier), classifier.certify_top_k(x.clone(), y.clone(), threat, k)
    if not isinstance(found, TopKCertificate):
        raise InvalidInput(f"certify_top_k of {name} returned a {type(found).__name__}; return a TopKCertificate")
    found = own_copy(found, TopKCertificate)
    kinds = {"y": "integers", "clean": "booleans", "certified": "booleans", "margin": "numbers"}
    for field, kind in kinds.items():
        _row(field, getattr(found, field), len(x), kind)
    if found.threat != threat or found.k != k or not torch.equal(found.y, y):
        raise InvalidInput(
            f"certify_top_k of {name} was asked about {threat} and k = {k} and returned a certificate of "
            f"{found.threat} and k = {found.k}, or of other classes; certify what is passed"
        )
    return found


def own_copy(given: D, kind: type[D]) -> D:
    """A `kind` with the same fields, its tensors copied and cut from any graph: who made it may write to theirs later.
    An object of a class derived from `kind`, which may answer otherwise at every look, is read once.
    """
    made = object.__new__(kind)  # whatever its fields hold: the caller checks them
    for field in fields(kind):  # type: ignore[arg-type]  # a dataclass
        one = getattr(given, field.name)
        object.__setattr__(made, field.name, one.detach().clone() if isinstance(one, Tensor) else one)
    return made


def classes_of(found: object, images: Tensor, who: str) -> Tensor:
    """The classes int64 [B] that foreign code returned for images [B,C,H,W], as a copy on their device.

    Raises `InvalidInput` for anything but one whole number for each image: other shapes would be broadcast.
    """
    if not isinstance(found, Tensor):
        raise InvalidInput(f"{who} returned a {type(found).__name__}; return a tensor of classes, whole numbers [B]")
    if not _is_whole(found) or found.shape != images.shape[:1]:
        raise InvalidInput(
            f"{who} returned {tuple(found.shape)} of {found.dtype} for {len(images)} images; return one class for "
            f"each, whole numbers [{len(images)}]"
        )
    return found.detach().to(images.device, torch.int64, copy=True)


def checked(certificate: Any, images: int, classes: int | None = None) -> Certificate:
    """The certificate itself, if its fields are those of so many images; `classes`: how many there are, where known.

    Raises `InvalidInput`, naming the field, unless: prediction is Int[B] of classes, or -1 where not certified;
    certified is Bool[B]; margin is None or numbers [B] without NaN; close is Int[B] of at least 0; guard is finite and
    not negative; confidence is None or lies strictly between 0 and 1; unit is a whole number of at least 1.
    """
    if not isinstance(certificate, Certificate):
        raise InvalidInput(f"certify returned a {type(certificate).__name__}; return a robustpatch Certificate")
    prediction = _row("prediction", certificate.prediction, images, "integers")
    certified = _row("certified", certificate.certified, images, "booleans")
    close = _row("close", certificate.close, images, "integers")
    low, high = (int(prediction.min()), int(prediction.max())) if images else (0, 0)
    if low < -1 or high >= (classes or 2**62):
        raise _wrong("prediction", f"{low} to {high}", "classes, or -1 to abstain")
    if bool((certified & (prediction < 0).to(certified.device)).any()):
        raise _wrong("certified", "True where the prediction is -1", "False where the prediction abstains")
    if images and int(close.min()) < 0:
        raise _wrong("close", str(int(close.min())), "counts of at least 0")
    if certificate.margin is not None and bool(
        torch.isnan(_row("margin", certificate.margin, images, "numbers")).any()
    ):
        raise _wrong("margin", "NaN", "numbers, or None where there are none")
    guard, confidence, unit = certificate.guard, certificate.confidence, certificate.unit
    if not _is_number(guard) or not isfinite(guard) or guard < 0:
        raise _wrong("guard", repr(guard), "a finite number of at least 0")
    if confidence is not None and not (_is_number(confidence) and 0 < confidence < 1):
        raise _wrong("confidence", repr(confidence), "a number strictly between 0 and 1, or None for a proof")
    if isinstance(unit, bool) or not isinstance(unit, int) or unit < 1:
        raise _wrong("unit", repr(unit), "a whole number of at least 1")
    return certificate


def _accepted(classifier: Classifier, found: object, images: int, threat: Threat, method: str) -> Certificate:
    name = _name(classifier)
    if not isinstance(found, Certificate):
        raise InvalidInput(f"{method} of {name} returned a {type(found).__name__}; return a robustpatch.Certificate")
    found = checked(own_copy(found, Certificate), images, classifier.num_classes or None)
    if found.threat != threat:
        raise InvalidInput(
            f"{method} of {name} was asked about {threat} and returned a certificate of {found.threat}; certify the "
            "threat that is passed, or certify no image for one that it was not built for"
        )
    return found


def _name(classifier: Classifier) -> str:
    return type(classifier.given).__name__


def _row(name: str, value: Any, images: int, kind: str) -> Tensor:
    """The value, if it is a tensor [B] of that kind. Raises `InvalidInput`."""
    if not isinstance(value, Tensor):
        raise _wrong(name, f"a {type(value).__name__}", f"a tensor [{images}] of {kind}")
    whole = _is_whole(value)
    right = {"integers": whole, "booleans": value.dtype == torch.bool, "numbers": whole or value.is_floating_point()}
    if value.shape != (images,) or not right[kind]:
        raise _wrong(name, f"{value.dtype} {list(value.shape)}", f"a tensor [{images}] of {kind}")
    return value


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(name: str, value: str, needed: str) -> InvalidInput:
    return InvalidInput(f"{name} of the certificate is {value}; certify has to return {needed}")

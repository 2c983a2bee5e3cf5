"""The interface of a certifier, `predict` and `certify` in torch or in numpy, and how the audit calls either."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from evaluate.audit import stopping
from robustpatch.classifiers.as_classifier import as_classifier, declared_randomized
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import first_argmax


@dataclass(frozen=True)
class Claim:
    """`certified[i]`: no patch within the threat changes the prediction of image i from `prediction[i]` (-1: none)."""

    prediction: Int[Tensor, " B"]
    certified: Bool[Tensor, " B"]


class Refused(Exception):
    """The certifier raised an error instead of answering."""


class Misshapen(Refused):
    """The certifier answered, but not once for each image."""


class Raised(InvalidInput):
    """The audit cannot begin, because foreign code raised the error that this one comes from."""


def check_methods(target: Any) -> None:
    """Refuses a certifier without `predict` or without `certify`. Raises `InvalidInput`."""
    missing = [name for name in ("predict", "certify") if not callable(getattr(target, name, None))]
    if missing:
        raise InvalidInput(
            f"certifier is a {type(target).__name__} without {' and '.join(missing)}; it needs predict(x) and "
            "certify(x, threat), whose result has .prediction and .certified"
        )


class AuditedCertifier(nn.Module):
    """A certifier with `predict(x)` and `certify(x, threat)`, asked in torch or in numpy.

    `predict` may return a class for each image, or scores [B,K], of which the first largest counts. Images go in as
    float32 tensors [B,C,H,W], or as arrays where `numpy` is set; each call gets a copy, unless `watched` is used. As a
    module it gives scores to attacks: the certifier's own `forward`, else its `scores(x)`, else its predictions.

    `alerts`: whether the certifier may answer "attack" instead of a class, which then breaks no certificate. True: the
    answer is the certifier's own attribute `alert`, or -1 where it has none; a whole number: that is the answer. An
    alert is given on as -1. A certifier that declares `randomized = True` (see `Classifier.randomized`) breaks
    nothing by answering -1 either.

    Raises `InvalidInput` where one of the two methods is missing.
    """

    def __init__(self, target: Any, num_classes: int, numpy: bool = False, alerts: bool | int = False) -> None:
        super().__init__()
        check_methods(target)
        voting = voting_classifier(as_classifier(target))
        if voting is not None and voting is not target:
            raise InvalidInput(
                "certifier is a RandomizedClassifier, whose certificates may be wrong now and then; "
                "robustpatch attack-vs-cert counts how often and compares with what alpha allows: use that"
            )
        self.numpy, self.num_classes, self.alerts = numpy, num_classes, alerts
        self.random = declared_randomized(target)
        self.alert: int | None = None  # the answer, besides -1, that means "attack"
        if alerts is not False:
            named = getattr(target, "alert", -1) if alerts is True else alerts
            if isinstance(named, bool) or not isinstance(named, int) or 0 <= named < num_classes:
                raise InvalidInput(
                    f"alerts is {alerts!r} and the answer that means an alert {named!r}; it must be a whole number "
                    f"that is no class, such as -1 or {num_classes}"
                )
            self.alert = named
        if self.forgiving:
            self.randomized = True  # by which attacks know that an answer of -1 is no success
        self._target, self._voting = (target,), (voting,)  # in tuples: not registered as submodules
        self.training = bool(getattr(target, "training", False))
        if isinstance(target, nn.Module):
            self.module = target  # registered: attacks refuse a module in training mode

    @property
    def target(self) -> Any:
        return self._target[0]

    @property
    def voting(self) -> SmoothedClassifier | None:
        """The certifier, where it is a smoothed classifier."""
        return self._voting[0]

    @classmethod
    def of(
        cls, target: Any, num_classes: int, x: Float[Tensor, "B C H W"], alerts: bool | int = False
    ) -> AuditedCertifier:
        """The certifier, asked in torch, or in numpy where it does not predict x in torch."""
        subject = cls(target, num_classes, alerts=alerts)
        try:
            subject.predict(x)
        except Refused as refusal:
            subject.numpy = True
            try:
                subject.predict(x)
            except Refused as other:
                raise InvalidInput(
                    f"certifier does not predict images of shape {tuple(x.shape)}: {refusal} (and of an array: {other})"
                    "; name the right image shape and number of classes"
                ) from refusal
        return subject

    @property
    def forgiving(self) -> bool:
        """Tells whether an answer of -1 is no change of a prediction."""
        return self.alert is not None or self.random

    def changed(self, prediction: Int[Tensor, "..."], y: Int[Tensor, "..."] | int) -> Bool[Tensor, "..."]:
        """Marks predictions that differ from y, so that a certificate of y is broken."""
        return (prediction != y) & ((prediction >= 0) | (not self.forgiving))

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of each image, -1 where it abstains. Raises `Refused`."""
        found = _tensor(self._ask(self.target.predict, self._copy(x)), "predict")
        if found.ndim == 2 and len(found) == len(x) and found.shape[1] > 1:
            try:
                found = first_argmax(found.to(torch.float64))
            except InvalidInput as error:
                raise Refused(f"predict returned scores of which none is the largest ({error})") from error
        return self._classes(found.flatten() if found.shape == (len(x), 1) else found, len(x), "predict")

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat) -> Claim:
        """The certifier's claim for each image. Raises `Refused`."""
        found = self._ask(self.target.certify, self._copy(x), threat)
        for name in ("prediction", "certified"):
            if not hasattr(found, name):
                raise Refused(f"certify returned a {type(found).__name__} without .{name}")
        if getattr(found, "confidence", None) is not None:
            raise Refused("its certificates hold with a confidence only; the audit is of certificates that always hold")
        certified = _per_image(_tensor(found.certified, "certified"), len(x), "certified")
        prediction = self._classes(_tensor(found.prediction, "prediction"), len(x), "certify's prediction")
        return Claim(prediction, certified.bool())

    def watched(self, name: str, x: Float[Tensor, "B C H W"], *more: Any) -> Float[Tensor, "B C H W"]:
        """Returns x as a call of that method leaves it: x itself, if it was not written to."""
        mine = self._copy(x)
        with torch.no_grad():
            self._ask(getattr(self.target, name), mine, *more)
        return torch.as_tensor(mine)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        if hasattr(self, "module") and self.white_box(x):
            return self._ask(self.module, x.clone())  # a copy: foreign code may write to it
        with torch.no_grad():
            if callable(getattr(self.target, "scores", None)) and not isinstance(self.target, nn.Module):
                return _tensor(self._ask(self.target.scores, self._copy(x)), "scores").float()
            predicted = self.predict(x)
            return nn.functional.one_hot(predicted.clamp(min=0), self.num_classes).float() * (predicted >= 0)[:, None]

    def white_box(self, x: Float[Tensor, "B C H W"]) -> bool:
        """Tells whether the certifier is a module whose output, K scores, has a gradient in the image."""
        if self.voting is not None:
            return True
        if not hasattr(self, "module") or type(self.module).forward is nn.Module.forward:
            return False
        if not hasattr(self, "_white_box"):
            with torch.enable_grad():
                leaf = x[:1].detach().clone().requires_grad_()
                try:
                    out = self.module(leaf)
                    self._white_box = tuple(out.shape) == (1, self.num_classes) and out.requires_grad
                except Exception:  # whatever a foreign module does with images
                    self._white_box = False
        return self._white_box

    def _copy(self, x: Tensor) -> Any:
        return x.detach().cpu().numpy().copy() if self.numpy else x.detach().clone()

    def _ask(self, method: Any, *given: Any) -> Any:
        stopping.check()
        try:
            return method(*given)
        except Exception as error:  # foreign code raises what it likes: that it did not answer is the answer
            raise Refused(told(error)) from error

    def _classes(self, found: Tensor, images: int, what: str) -> Int[Tensor, " B"]:
        found = _per_image(found, images, what)
        whole = found.to(torch.int64)
        if self.alert is not None and bool((whole == found).all()):
            whole = found = torch.where(whole == self.alert, -1, whole)
        if bool((whole != found).any()) or bool(((whole < -1) | (whole >= self.num_classes)).any()):
            raise Refused(f"{what} is {found.tolist()[:8]}; classes are 0 to {self.num_classes - 1}, or -1")
        return whole


def _per_image(found: Tensor, images: int, what: str) -> Tensor:
    """One entry for each image; for a single image a single number will do. Raises `Misshapen`."""
    found = found.reshape(1) if images == 1 and found.ndim == 0 else found
    if found.shape != (images,):
        raise Misshapen(f"{what} has shape {tuple(found.shape)} for {images} images")
    return found


def told(error: BaseException) -> str:
    """An error of foreign code on one line: its kind, its text, and the line of that code that it came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).parent != Path(__file__).parent]
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")] or frames
    at = f" ({own[-1].filename}, line {own[-1].lineno}, in {own[-1].name})" if own else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{at}"


def _tensor(value: Any, what: str) -> Tensor:
    """A copy on the CPU: foreign code may write again to what it returned."""
    try:
        return torch.as_tensor(np.array(value) if not isinstance(value, Tensor) else value).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise Refused(f"{what} is a {type(value).__name__}, not an array ({error})") from error

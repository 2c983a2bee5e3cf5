"""`as_classifier`: the border at which foreign classifiers become `Classifier`s; the only place that probes objects."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers import checks
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import as_threat
from robustpatch.voting.rules import first_argmax


@singledispatch
def as_classifier(given: Any) -> Classifier:
    """The classifier that an object is; a `Classifier` itself, so that converting twice is converting once.

    - An `nn.Module` answers by its own `predict(x)`, else by the argmax of `forward(x)`. It may have `certify(x,
      threat) -> Certificate`; declare `alerts` where it answers an attack by -1; declare `randomized`, with
      `referee()`, `prediction_error` and `judge_error`; and have `evaluations(height, width)` and `predict_counted(x)`
      for what its answers cost.
    - ART's `PyTorchClassifier` (registered by `attacks.art.models`).
    - Any other object with `predict` is asked with numpy arrays [B,C,H,W]; it returns classes [B] or scores [B,K]. It
      may have `certify(x, threat)`, whose answer has `.prediction` and `.certified`, and `num_classes`.
    - Any other callable maps a tensor [B,C,H,W] to scores [B,K].

    Raises `InvalidInput` for anything else, and for a `randomized` that is no boolean.
    """
    if callable(getattr(given, "predict", None)):
        module = _CertifierOfArrays(given) if callable(getattr(given, "certify", None)) else _PredictorOfArrays(given)
    elif callable(given) and not isinstance(given, type):
        module = _Function(given)
    else:
        raise InvalidInput(
            f"model is a {type(given).__name__}; pass a torch.nn.Module, an object with predict(x), or a function that "
            "maps images [B,C,H,W] to scores [B,K]"
        )
    return as_classifier(module.eval())


@as_classifier.register(Classifier)
def _(given: Classifier) -> Classifier:
    declared_randomized(given)
    given.check_overridden()
    return given


@as_classifier.register(nn.Module)
def _(given: nn.Module) -> Classifier:
    return CertifyingModule(given) if callable(getattr(given, "certify", None)) else ForeignModule(given)


def declared_randomized(model: object) -> bool:
    """True where the object declares `randomized = True`. Raises `InvalidInput` for another value than a boolean."""
    declared = getattr(model, "randomized", False)
    if not isinstance(declared, bool):
        raise InvalidInput(
            f"randomized is {declared!r} of {type(model).__name__}; declare True where predictions depend on "
            "chance, or False"
        )
    return declared


class ForeignModule(Classifier):
    """A foreign module, called by the methods that it has."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        classes = getattr(module, "num_classes", None)
        self.num_classes = classes if isinstance(classes, int) and not isinstance(classes, bool) else 0
        self.randomized, self.training = declared_randomized(module), module.training
        self.alerts = getattr(module, "alerts", False) is True

    @property
    def given(self) -> nn.Module:
        return self.module

    @property
    def prediction_error(self) -> Any:  # of whatever type: `errors` refuses what is no probability
        return getattr(self.module, "prediction_error", 0.0)

    @property
    def judge_error(self) -> Any:
        return getattr(self.module, "judge_error", 0.0)

    @property
    def guard(self) -> float | None:
        return getattr(self.module, "guard", None)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Any:
        return self.module(x)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Any:
        """The module's own `predict`, or the argmax of its output in evaluation mode. Raises `InvalidInput` for outputs
        of which none is the largest number (see `votes.first_argmax`).
        """
        if hasattr(self.module, "predict"):
            return self.module.predict(x)  # type: ignore[operator]  # its own method
        checks.evaluation_mode(self.module)
        return first_argmax(self.outputs(x))

    def cost(self, height: int, width: int) -> tuple[int, int]:
        if hasattr(self.module, "evaluations"):
            return self.module.evaluations(height, width)  # type: ignore[operator]  # its own method
        return super().cost(height, width)

    def predict_with_cost(self, x: Float[Tensor, "B C H W"]) -> Any:
        if hasattr(self.module, "predict_counted"):
            return self.module.predict_counted(x)  # type: ignore[operator]  # its own method
        return super().predict_with_cost(x)

    @property
    def predicts_apart(self) -> bool:
        return hasattr(self.module, "predict") and super().predicts_apart

    def referee(self) -> nn.Module:
        found = getattr(self.module, "referee", None)
        return self if found is None else found()


class CertifyingModule(ForeignModule, CertifiedClassifier):
    """A foreign module with certificates of its own."""

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Any:
        return self.module.certify(x, as_threat(threat, x.shape[2:]))  # type: ignore[operator]  # its own method

    def in_words(self) -> str:
        return f"{type(self.module).__name__}, its own certificates"


class _PredictorOfArrays(nn.Module):
    """An object whose `predict` takes numpy arrays."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target = target
        self.num_classes = getattr(target, "num_classes", None)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        found = self._asked(x)
        return first_argmax(found.double()) if found.ndim == 2 else found.long()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Its scores, or its class as one-hot; nothing to be differentiated."""
        found = self._asked(x)
        if found.ndim == 2:
            return found.float()
        if not isinstance(self.num_classes, int):
            raise InvalidInput(
                f"predict of {type(self.target).__name__} returns classes, and attacks need their number; give it an "
                "attribute num_classes"
            )
        return nn.functional.one_hot(found.long().clamp(min=0), self.num_classes).float() * (found >= 0)[:, None]

    def _asked(self, x: Tensor) -> Tensor:
        return torch.as_tensor(np.asarray(self.target.predict(_array(x)))).to(x.device)


class _CertifierOfArrays(_PredictorOfArrays):
    """One that certifies too."""

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        threat = as_threat(threat, x.shape[2:])
        found = self.target.certify(_array(x), threat)
        if isinstance(found, Certificate):
            return found
        prediction, certified = (
            torch.as_tensor(np.asarray(value)).to(x.device) for value in (found.prediction, found.certified)
        )
        return Certificate(
            prediction=prediction.long(),
            certified=certified.bool(),
            margin=None,
            placement_margin=None,
            threat=threat,
            method="exact",
            guard=0.0,
            close=torch.zeros_like(prediction.long()),
        )


class _Function(nn.Module):
    """A function from images to scores."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        return self.function(x)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().clone().cpu().numpy()

"""Modules of any kind asked as the evaluator asks them: tests hold plain modules, the package classifiers."""

from __future__ import annotations

from torch import Tensor, nn

from attacks.base import judge_of
from robustpatch.classifiers import isolation
from robustpatch.classifiers.as_classifier import as_classifier


def predict(model: nn.Module, x: Tensor) -> Tensor:
    return isolation.predict(as_classifier(model), x)


def evaluations(model: nn.Module, x: Tensor) -> tuple[int, int]:
    return as_classifier(model).cost(x.shape[2], x.shape[3])


def referee(model: nn.Module) -> nn.Module:
    return judge_of(as_classifier(model)).given

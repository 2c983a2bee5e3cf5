"""The loss of a classifier as a module, and which part of the classifier it is of."""

from __future__ import annotations

import torch
from torch import nn

from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses import Defended
from robustpatch.threats.base import Threat
from robustpatch.training.config import TrainingConfig
from robustpatch.training.losses import objective


class Loss(nn.Module):
    """`objective` of the model as a module, which is what several processes can share."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        threat: Threat | None,
        sets: torch.Tensor | None,
        teacher: SmoothedClassifier | None,
    ) -> None:
        super().__init__()
        self.model, self._config, self._threat, self._sets = model, config, threat, sets
        self._teacher = [teacher]  # in a list, so that its weights are none of this module's

    def forward(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, done: float) -> torch.Tensor:
        trained = trained_part(self.model)
        if isinstance(trained, Defended) and self._threat is not None:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self._config.bfloat16):
                return trained.training_loss(x, y, self._threat, generator, done).float()
        return objective(trained, x, y, self._config, self._threat, self._sets, generator, self._teacher[0])


def trained_part(model: nn.Module) -> nn.Module:
    """The part whose objective is minimised: the smoothed classifier in a defense without an own loss, or the model."""
    if isinstance(model, Defended) and type(model).training_loss is Defended.training_loss:
        return model.network if isinstance(model.network, SmoothedClassifier) else model
    return model

"""The optimizer of a training, and the cycle of its learning rate and momentum."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from robustpatch.training.config import TrainingConfig


def momenta(middle: float) -> tuple[float, float]:
    """The least and the largest momentum of a cycle around `middle`: 0.05 to either side, less near 0 and 1."""
    half = min(0.05, middle, (1 - middle) / 2)
    return round(middle - half, 12), round(middle + half, 12)  # of 0.9, exactly 0.85 and 0.95


def optimizer_of(model: nn.Module, config: TrainingConfig) -> Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all weights of the model."""
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(model.parameters(), config.lr, betas, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )


def schedule_of(optimizer: Optimizer, config: TrainingConfig, steps: int) -> OneCycleLR:
    """One cycle of the learning rate up to `lr`, with the momentum against it, over `steps` steps in all."""
    total = steps + 1
    low, high = momenta(config.momentum)
    # The rise takes a quarter of the run, and at least one step: torch divides by its length.
    return OneCycleLR(
        optimizer, config.lr, total_steps=total, pct_start=max(0.25, 2 / total), base_momentum=low, max_momentum=high
    )

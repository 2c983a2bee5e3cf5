"""Refusals to go on from numbers that are none: a loss, a weight, or a score that a kernel of bfloat16 gets wrong."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import nn

from robustpatch.classifiers.calibration import deviation_from_float32
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.image_set import ImageSet
from robustpatch.defenses import Defended
from robustpatch.errors import InvalidInput
from robustpatch.training.config import TrainingConfig
from robustpatch.training.losses import trained_part

_WITNESSED = 32  # validation images on which bfloat16 is held against float32 after each epoch


def check_loss(loss: float, epoch: int, step: int, config: TrainingConfig) -> None:
    """Refuse to go on from a loss that is no number: the last step has spoilt the weights, or this one would."""
    if not math.isfinite(loss):
        raise InvalidInput(f"loss is {loss} in step {step + 1} of epoch {epoch + 1}; {_finite_again(config)}")


def check_weights(model: nn.Module, epoch: int, config: TrainingConfig) -> None:
    """Refuse to publish weights or batch statistics that are no numbers."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(f"{name} holds NaN or infinity after epoch {epoch + 1}; {_finite_again(config)}")


def _finite_again(config: TrainingConfig) -> str:
    cure = "train in float32 with --no-bfloat16, or" if config.bfloat16 else ""
    return f"the epochs before are kept, and nothing of this one: {cure} lower lr, {config.lr:g}".replace(":  ", ": ")


@torch.no_grad()
def off_float32(
    model: nn.Module, validation: ImageSet, epoch: int, config: TrainingConfig, device: str
) -> float | None:
    """The largest distance of a score under bfloat16 autocast from float32's, on the first validation images; None
    where the training is in float32. Refuses one that rounding does not explain (`calibration.Deviation.explained`).

    Of the ablations, those that the network is asked about together; of a base that enumerates, 64.
    """
    if not config.bfloat16:
        return None
    trained = _scored(trained_part(model))
    training, x = model.training, validation.batch(range(min(_WITNESSED, len(validation))))[0].to(device)
    model.eval()
    trained.eval()
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found = deviation_from_float32(trained, _whole(model, x), _logits)
    finally:
        model.train(training)
    assert found is not None
    if not found.explained:
        raise InvalidInput(
            f"bfloat16 is off float32 by {found.logit:.2g} in a logit, where the largest is {found.largest:.2g}, on "
            f"validation images after epoch {epoch + 1}: a wrong kernel or an overflow, not rounding; nothing of this "
            "epoch is kept: train in float32 with --no-bfloat16"
        )
    return found.score


@singledispatch
def _scored(model: nn.Module) -> nn.Module:
    """The part whose scores are compared."""
    return model


@_scored.register(Defended)
def _(model: Defended) -> nn.Module:
    return model.network


@singledispatch
def _whole(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Whole images as the network is shown them."""
    return x


@_whole.register(Defended)
def _(model: Defended, x: torch.Tensor) -> torch.Tensor:
    encoding = model.defense.encoding
    return x if encoding is None else encoding(x, torch.ones_like(x[:, 0], dtype=torch.bool))


@_scored.register(RandomizedClassifier)
def _(model: RandomizedClassifier) -> nn.Module:
    return model.enumerated()


@singledispatch
def _logits(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network(x)


@_logits.register(SmoothedClassifier)
def _(network: SmoothedClassifier, x: torch.Tensor) -> torch.Tensor:
    n = network.ablation.count(*x.shape[2:])
    few = None if network.one_pass else torch.linspace(0, n - 1, min(n, 64), device=x.device).round().long()
    return network.logits(x, few)

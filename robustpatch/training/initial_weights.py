"""The beginning of a training: weights of other checkpoints, a teacher, and weights that stay as they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.ablations.union import Union
from robustpatch.checkpoints import load_checkpoint, network_of
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.networks import UnionNet
from robustpatch.training.config import TrainingConfig


def begin_with(start: str, model: nn.Module, config: dict[str, Any]) -> None:
    """Load the weights of a checkpoint, or of one for each part of a union, joined by "+"."""
    ablation, whole = None if config["ablation"] is None else parse_source(config["ablation"]), network_of(model)
    pairs: list[tuple[str, Ablation | SparseAblation | None, nn.Module]] = [(start, ablation, whole)]
    if isinstance(ablation, Union) and "+" in start:
        parts = list(whole.parts) if isinstance(whole, UnionNet) else []
        names = start.split("+")
        if len(names) != len(parts):
            raise InvalidInput(f"start is {start}, {len(names)} checkpoints, but {ablation} has {len(parts)} parts")
        pairs = list(zip(names, ablation.parts, parts, strict=True))
    for name, own, network in pairs:
        loaded = load_checkpoint(name, ablation=own)
        same = ["encoding", "image_shape", "class_names"]  # an undefended classifier has no encoding
        same += ["network"] if network is whole else []
        unlike = f"start is {name}, a checkpoint of another network or data set; name one of this"
        if any(loaded.config.get(key) != config.get(key) for key in same):
            raise InvalidInput(unlike)
        try:
            network.load_state_dict(network_of(loaded.model).state_dict())
        except RuntimeError as error:
            raise InvalidInput(unlike) from error


def teacher_of(name: str, trained: nn.Module, config: dict[str, Any], device: str) -> SmoothedClassifier:
    """The smoothed classifier of a checkpoint, to learn from."""
    if voting_classifier(as_classifier(trained)) is not trained:
        raise InvalidInput(f"teacher is {name}, but a {type(trained).__name__} is trained; it is for smoothed ones")
    loaded = load_checkpoint(name, ablation=parse_source(config["ablation"]))
    if any(loaded.config.get(key) != config.get(key) for key in ("image_shape", "class_names")):
        raise InvalidInput(f"teacher is {name}, a checkpoint of another data set; name one of this")
    return loaded.smoothed.to(device).requires_grad_(False)


def freeze(network: nn.Module, config: TrainingConfig) -> list[nn.Module]:
    """Stop the gradients of all weights that are not under the name `only`; the layers that consist of such."""
    if config.start is None:
        raise InvalidInput(f"only is {config.only}, but all other weights would stay as drawn; set --start")
    for name, weight in network.named_parameters():
        weight.requires_grad_(config.only in name.split("."))
    if not any(weight.requires_grad for weight in network.parameters()):
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters()))
        raise InvalidInput(f"only is {config.only}, under which the network has no weights; it has {known}")
    layers = [module for module in network.modules() if not any(True for _ in module.children())]
    weights = [(layer, list(layer.parameters())) for layer in layers]
    return [layer for layer, own in weights if own and not any(weight.requires_grad for weight in own)]

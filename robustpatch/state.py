"""A training in the middle, on disk: weights, optimizer, schedule and history, in safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robustpatch.bounded_json import read_object
from robustpatch.errors import InvalidInput
from robustpatch.zoo import network_of


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """What holds weights: the network, and what a defense trains beside it."""
    guide = getattr(model, "guide", None)
    return {"base": network_of(model)} | ({} if guide is None else {"guide": guide})


def save(
    path: Path,
    config: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    history: list[dict[str, Any]],
) -> None:
    """Write the state after an epoch; the file appears whole or not at all."""
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, module in _parts(model).items()
        for name, tensor in module.state_dict().items()
    }
    saved = optimizer.state_dict()
    for number, entry in saved["state"].items():
        for name, value in entry.items():
            if value is not None:  # SGD has no buffer without momentum
                tensors[f"optimizer.{number}.{name}"] = value.cpu().contiguous()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
    meta = {"config": config, "groups": groups, "schedule": schedule.state_dict(), "history": history}
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata={"state": json.dumps(meta)})
    os.replace(part, path)


def restore(
    path: Path, config: dict[str, Any], model: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> list[dict[str, Any]]:
    """Set model, optimizer and schedule to the state saved, and return the history. Raises `InvalidInput` where the
    file is damaged or of another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = read_object(file.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path} is damaged ({error}); delete it to train from the start") from error
    if meta["config"] != json.loads(json.dumps(config)):
        differing = sorted(k for k in config if json.loads(json.dumps(config[k])) != meta["config"].get(k))
        raise InvalidInput(
            f"output {path.parent} was trained with another {', '.join(differing)}; "
            "resume with the same options, or name another output"
        )
    tensors = load_file(path)
    for part, module in _parts(model).items():
        start = f"{part}."
        module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    saved = optimizer.state_dict()
    for group, stored in zip(saved["param_groups"], meta["groups"], strict=True):
        group.update(stored)
    saved["state"] = {}
    for key in (key for key in tensors if key.startswith("optimizer.")):
        _, number, name = key.split(".")
        saved["state"].setdefault(int(number), {})[name] = tensors[key]
    optimizer.load_state_dict(saved)
    schedule.load_state_dict(meta["schedule"])
    return meta["history"]

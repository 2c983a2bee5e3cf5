"""A training in the middle, on disk: weights, optimizer, schedule and history, in one sealed safetensors file.

All else that a training writes can be made of this file, and is made again where it is missing, damaged or older.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save as as_bytes
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robustpatch.checkpoints import checkpoint_bytes, network_of
from robustpatch.errors import InvalidInput
from robustpatch.storage.sealing import BLANK_SEAL, read_tensors, seal_holds, sealed
from robustpatch.storage.store import Store

STATE, CHECKPOINT, HISTORY = "state.safetensors", "checkpoint.safetensors", "history.json"
_UNSEALED = {"config", "groups", "schedule", "history"}  # what states held before there were seals


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold weights: the network, and the one that a defense trains beside it."""
    guide = getattr(model, "guide", None)
    return {"base": network_of(model)} | ({} if guide is None else {"guide": guide})


def size(model: nn.Module) -> int:
    """Bytes that a training may take on the disk: the state, with two moments of each weight, twice for a moment, and
    the checkpoint.
    """
    return 7 * sum(tensor.nbytes for module in _parts(model).values() for tensor in module.state_dict().values())


def save(
    store: Store,
    config: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    history: list[dict[str, Any]],
) -> None:
    """Write the state after an epoch, and then what is made of it."""
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
    store.write(STATE, sealed(as_bytes(tensors, {"state": json.dumps({**meta, "seal": BLANK_SEAL})})))
    publish(store, config, model, history)


def publish(store: Store, config: dict[str, Any], model: nn.Module, history: list[dict[str, Any]]) -> None:
    """Have the checkpoint and the history lie there as the state's weights and history make them."""
    made = {
        CHECKPOINT: checkpoint_bytes(model, {**config, "history": history}),
        HISTORY: json.dumps(history, indent=1).encode(),
    }
    for name, content in made.items():
        if not store.exists(name) or store.read(name) != content:
            store.write(name, content)


def restore(
    store: Store, config: dict[str, Any], model: nn.Module, optimizer: Optimizer, schedule: LRScheduler
) -> list[dict[str, Any]]:
    """Set model, optimizer and schedule to the state saved, and return the history, which is empty where there is no
    state. Raises `InvalidInput` where the file is damaged, in any byte, or of another configuration, and where there is
    what was made of a state without it.
    """
    if not store.exists(STATE):
        found = [name for name in (CHECKPOINT, HISTORY) if store.exists(name)]
        if found:
            raise InvalidInput(
                f"output {store} holds {found[0]}, but no {STATE} to go on from; name another output, or move that "
                "file away to train from the start"
            )
        return []
    content = store.read(STATE)
    try:
        tensors, meta = read_tensors(content, "state")
        if meta is None:
            raise ValueError("it holds no state of a training")
        if meta.keys() != _UNSEALED and not seal_holds(content):
            raise ValueError("its checksum is wrong")
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{store.path(STATE)} is damaged ({error}); delete it to train from the start") from error
    if meta["config"] != json.loads(json.dumps(config)):
        differing = sorted(k for k in config if json.loads(json.dumps(config[k])) != meta["config"].get(k))
        raise InvalidInput(
            f"output {store} was trained with another {', '.join(differing)}; "
            "resume with the same options, or name another output"
        )
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

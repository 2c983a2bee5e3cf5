"""Whose results a folder holds: `run.json` says what decides them, and no other run writes there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from evaluate.model.fingerprint import code_of
from evaluate.runs.shards import whose
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.defenses import Defended
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_json
from robustpatch.storage.store import Store


def claim(output: str | Path | Store, configuration: dict[str, Any]) -> str:
    """Make `output` this run's, or find that it is already; returns `run_of` it. Raises `InvalidInput` where it holds
    another, and of two runs that come at once for one of them.

    Where run.json is missing, what lies there says whose it is: results of this run are kept, those of others refused.
    """
    configuration = json.loads(json.dumps(configuration))
    store, run = Store.of(output), _name_of(configuration)
    if not store.exists("run.json"):
        _check_unclaimed(store, run)
    if not store.create("run.json", json.dumps(configuration, indent=1).encode()):
        try:
            stored = read_json(store.read("run.json"))
        except ValueError:  # no JSON, or no text at all
            stored = None
        if not isinstance(stored, dict):
            raise InvalidInput(
                f"output {store} holds a run.json that cannot be read; delete that file and repeat the command, which "
                "keeps what is of this run, or name another output"
            )
        if stored != configuration:
            raise InvalidInput(
                f"output {store} holds another run (other {', '.join(_differing(stored, configuration)) or 'keys'}); "
                "name another output, or repeat that run's options, model and code to resume it"
            )
    return run


def _check_unclaimed(store: Store, run: str) -> None:
    """Refuse a place without run.json that holds what another run wrote."""
    for name in store.all_names("records", ".parquet"):
        if whose(store, name) not in (run, None):
            raise InvalidInput(
                f"output {store} has no run.json, but {name} of another run; name another output, or move that away"
            )


def release(output: str | Path | Store) -> None:
    """Give up a claim under which nothing was written, unless others may be at work under it."""
    store = Store.of(output)
    if not store.others and not store.all_names("records", ".parquet"):
        store.remove("run.json")


def _differing(stored: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    """The keys under which a run's configuration is another; of files and code, which of them."""
    found = []
    for key, value in configuration.items():
        before = stored.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inside = sorted(name for name in {**before, **value} if before.get(name) != value.get(name))
            found += [f"{key}: {' '.join(inside)}"] if inside else []
        elif key not in stored:
            found.append(f"{key}, which that run has none of")
        elif before != value:
            found.append(key)
    return found


def run_of(output: str | Path | Store) -> str:
    """What tells the run in `output` from others: a hash of run.json; "" where there is none that can be read."""
    try:
        configuration = read_json(Store.of(output).read("run.json"))
    except (FileNotFoundError, ValueError):
        return ""
    return _name_of(configuration)


def _name_of(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def images_fingerprint(images: ImageSet, total: int) -> str:
    """What tells data sets of one name apart: all labels, every image as stored, and the first and the last as read."""
    x, _ = images.batch([0, total - 1])
    digest = hashlib.sha256(images.labels[:total].numpy().tobytes() + x.numpy().tobytes())
    for i in range(total):
        digest.update(hashlib.sha256(images.stored(i)).digest())
    return digest.hexdigest()


def model_identity(model: torch.nn.Module, *, of_checkpoint: bool = False) -> dict[str, Any]:
    """What tells a run's model from others: weights and code. `of_checkpoint`: it is what this package built from a
    checkpoint, whose file is named and says the rest; code of the user's own is told all the same.
    """
    identity: dict[str, Any] = {"model_sha256": model_fingerprint(model)}
    code = code_of(model)
    return identity if of_checkpoint and code.keys() == {"values"} else {**identity, "model_code": code}


def model_fingerprint(model: torch.nn.Module) -> str:
    """What tells models apart: their kind, their weights, and how a smoothed one ablates, samples and votes."""
    parts: list[object] = [type(model).__qualname__]
    if isinstance(model, Defended):
        parts += [str(model.defense), model_fingerprint(model.network)]
    if isinstance(model, RandomizedClassifier):
        parts += [repr(model.sampling), model.views]
    if isinstance(model, SmoothedClassifier | RandomizedClassifier):
        parts += [
            type(model.base).__qualname__,
            str(model.ablation),
            str(model.voting),
            model.guard,
            model.encoding.name,
            *vars(model.encoding).values(),
        ]
    digest = hashlib.sha256(repr(parts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):  # what a module's get_extra_state returns
            digest.update(repr((name, code_of(tensor, private=True))).encode())
            continue
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

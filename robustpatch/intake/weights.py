"""Weights for a network that the user names: tensors by name, from a file that nothing is run of."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

_INSIDE = ("state_dict", "model", "model_state_dict")  # where trainings keep weights beside other things


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a state dict that `torch.save` wrote, also as an entry "state_dict" or
    "model" of a table; of names that all begin with "module.", the rest. Raises `InvalidInput`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats, which are refused
            found: Any = (
                load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            )
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"weights is {path}, a pickle that holds more than tensors, and unpickling it could run code; save the "
            "weights alone, as safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError) as error:
        raise InvalidInput(
            f"weights is {path}, which cannot be read ({one_line(error, 200)}); name a file of weights"
        ) from error
    while isinstance(found, Mapping) and (
        inner := next((key for key in _INSIDE if isinstance(found.get(key), Mapping)), None)
    ):
        found = found[inner]
    tensors = (
        {name: value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors or len(tensors) < len(found):
        what = f"a {type(found).__name__}" if not isinstance(found, Mapping) else "a table of other things"
        raise InvalidInput(f"weights is {path}, {what}; give a state dict, whose values are tensors")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path, name: str) -> nn.Module:
    """The network with these weights, each one of its own and of the file's used. Raises `InvalidInput`."""
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    other = sorted(key for key in own.keys() & tensors.keys() if own[key].shape != tensors[key].shape)
    if missing or unknown or other:
        what = f"no {missing[0]}" if missing else f"{unknown[0]}, which {name} has not" if unknown else ""
        if not what:
            key = other[0]
            what = f"{key} of shape {tuple(tensors[key].shape)}, where {name} has {tuple(own[key].shape)}"
        raise InvalidInput(
            f"weights is {path}, which holds {one_line(what, 200)}; name the weights of "
            f"a {name}, or with --input-size the size of the images that these are for"
        )
    network.load_state_dict(tensors)
    return network

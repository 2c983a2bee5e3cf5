"""The configuration of a checkpoint, which anybody may have written: its values have the types that they need."""

from __future__ import annotations

from typing import Any

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

_SIDE, _CHANNELS, _CLASSES, _TEXT = 2**13, 64, 2**17, 2**12


def check_configuration(config: dict[str, Any]) -> None:
    """Refuse, with `InvalidInput`, values of other types than a configuration has, and images or lists of classes of
    sizes that no network here is for. What is missing is left for those who need it to say.
    """
    network, shape, names = (config.get(key) for key in ("network", "image_shape", "class_names"))
    if "network" in config and not (isinstance(network, dict) and isinstance(network.get("name"), str)):
        raise _wrong("network", network, "a table with a name")
    if "image_shape" in config and not (
        isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(
            isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= most
            for side, most in zip(shape, (_CHANNELS, _SIDE, _SIDE), strict=True)
        )
    ):
        raise _wrong("image_shape", shape, f"[channels, height, width], up to {_CHANNELS} and {_SIDE} each")
    if "class_names" in config and not (
        isinstance(names, list | tuple)
        and 1 <= len(names) <= _CLASSES
        and all(isinstance(name, str) and len(name) <= _TEXT for name in names)
    ):
        raise _wrong("class_names", names, "a list of names")
    for key in ("ablation", "defense", "voting", "encoding"):
        value = config.get(key)
        if value is not None and not (isinstance(value, str) and len(value) <= _TEXT):
            raise _wrong(key, value, "a text")
    guard = config.get("guard")
    if guard is not None and (not isinstance(guard, int | float) or isinstance(guard, bool)):
        raise _wrong("guard", guard, "a number")


def _wrong(key: str, value: Any, needed: str) -> InvalidInput:
    return InvalidInput(
        f"the configuration has {key} {one_line(repr(value), 80)}; {needed} is needed: fetch or train it again"
    )

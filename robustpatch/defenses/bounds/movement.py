"""Operators that only copy values to other places: bounds move with them, exactly.

The first axis holds the images. Each rule refuses a call that could move something along it, or lay it together with
another axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from robustpatch.defenses.bounds.call import Box, Call, Rule, Step
from robustpatch.defenses.bounds.graph import BATCH

aten = torch.ops.aten

_MIXED = "which would move the images along the first axis, or merge it with another; keep that axis as it is"


def both_ends(step: Step) -> Any:
    """The operator of all lower ends and of all upper ends."""
    lower, upper = step.at(0), step.at(1)
    if isinstance(lower, torch.Tensor):
        return Box(lower, upper)
    return [Box(*pair) for pair in zip(lower, upper, strict=True)]


def along(call: Call, dims: Any, ndim: int | None = None) -> bool:
    """True where the first axis is among `dims` (one, several, or for none given: all)."""
    if dims is None or dims == []:
        return True
    ndim = call.ndim if ndim is None else ndim
    return any(dim % ndim == 0 for dim in (dims if isinstance(dims, list) else [dims]))


def _ranks(call: Call, name: str = "self") -> int:
    return len(call.shape(call[name]))


def _reshape(call: Call) -> str | None:
    """Row-major: with the images along the first axis before and after, image i's values stay image i's."""
    return None if call.shape(call["self"])[0] is BATCH and call["shape"][0] is BATCH else _MIXED


def _expand(call: Call) -> str | None:
    first = call["size"][0]
    kept = first is BATCH or first == -1
    if call.images("self"):
        kept = kept and _ranks(call) == len(call["size"])
    return None if kept else _MIXED


def _permute(call: Call) -> str | None:
    return None if call["dims"][0] % call.ndim == 0 else _MIXED


def _transpose(call: Call) -> str | None:
    return _MIXED if along(call, [call["dim0"], call["dim1"]]) else None


def _slice(call: Call) -> str | None:
    if not along(call, call["dim"]):
        return "with end of the number of images; compute each image alone" if call["end"] is BATCH else None
    ends_last = call["end"] is BATCH or call["end"] in (None, 2**63 - 1)
    return None if call["start"] in (None, 0) and call["step"] == 1 and ends_last else _MIXED


def _of_argument(name: str) -> Callable[[Call], str | None]:
    """Refuses the first axis among the argument's, counted as the input has axes."""

    def refuse(call: Call) -> str | None:
        return _MIXED if along(call, call[name], _ranks(call)) else None

    return refuse


def _joined(call: Call) -> str | None:
    return _MIXED if along(call, call["dim"]) else None


def _padded(call: Call) -> str | None:
    return _MIXED if any(call["pad"][2 * (_ranks(call) - 1) :]) else None


def spatial(call: Call) -> str | None:
    """Refuses a call that does not work on the axes after images and channels."""
    name = "self" if "self" in call.arguments else "input"
    return None if _ranks(call, name) == 4 else "on other than four axes; pass [batch, channels, height, width]"


def reduced(call: Call) -> str | None:
    """Refuses a sum, mean or extremum over the first axis, or in another type."""
    if call["dtype"] is not None:
        return f"in {call['dtype']}; leave dtype out"
    return (
        "over all axes or the first, that of images; name the other axes"
        if along(call, call["dim"], _ranks(call))
        else None
    )


def _pads_behind(call: Call) -> str | None:
    return None if _ranks(call) > len(call["padding"]) // 2 else _MIXED


def _repeated(call: Call) -> str | None:
    return None if len(call["repeats"]) == _ranks(call) and call["repeats"][0] == 1 else _MIXED


def _filled(call: Call) -> str | None:
    return None if call["size"][0] is BATCH else _MIXED


MOVEMENT = {
    op: Rule(refuse, both_ends)
    for op, refuse in {
        aten.reshape.default: _reshape,
        aten.expand.default: _expand,
        aten.permute.default: _permute,
        aten.transpose.int: _transpose,
        aten.slice.Tensor: _slice,
        aten.select.int: _of_argument("dim"),
        aten.flip.default: _of_argument("dims"),
        aten.roll.default: _of_argument("dims"),
        aten.split.Tensor: _of_argument("dim"),
        aten.split_with_sizes.default: _of_argument("dim"),
        aten.unbind.int: _of_argument("dim"),
        aten.cat.default: _joined,
        aten.stack.default: _joined,
        aten.constant_pad_nd.default: _padded,
        aten._pad_circular.default: _padded,
        aten.reflection_pad1d.default: _pads_behind,
        aten.reflection_pad2d.default: _pads_behind,
        aten.replication_pad1d.default: _pads_behind,
        aten.replication_pad2d.default: _pads_behind,
        aten.pixel_shuffle.default: spatial,
        aten.pixel_unshuffle.default: spatial,
        aten.channel_shuffle.default: spatial,
        aten.upsample_nearest2d.default: spatial,
        aten.upsample_nearest2d.vec: spatial,
        aten.repeat.default: _repeated,
        aten.zeros.default: _filled,
        aten.ones.default: _filled,
        aten.full.default: _filled,
    }.items()
}
SEVERAL = {aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int}

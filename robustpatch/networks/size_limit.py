"""Networks that a file describes are built no larger than the weights in it need."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from torch.nn.modules import module

from robustpatch.errors import InvalidInput

_WEIGHTS, _MODULES = 2**24, 4_000  # more than the file holds: of layers that are replaced while a network is built


@contextmanager
def at_most(weights: int, tensors: int) -> Iterator[None]:
    """While the network of a file is built here: refuse, with `InvalidInput`, one of far more weights than `weights`,
    or of far more layers than `tensors` could belong to. A tensor is counted before it is filled, so that none takes
    memory.
    """
    thread, counted, layers = threading.get_ident(), 0, 0

    def count(_: Any, name: str, tensor: Tensor | None) -> None:
        nonlocal counted
        if threading.get_ident() == thread and tensor is not None:
            counted += tensor.numel()
            if counted > 2 * weights + _WEIGHTS:
                raise InvalidInput(
                    f"it describes a network of more than {counted:,} weights, but holds {weights:,}; its "
                    "configuration does not belong to its weights: fetch or train it again"
                )

    def count_layer(*_: Any) -> None:
        nonlocal layers
        layers += threading.get_ident() == thread
        if layers > 8 * tensors + _MODULES:
            raise InvalidInput(
                f"it describes a network of more than {layers:,} layers, but holds {tensors:,} tensors; its "
                "configuration does not belong to its weights: fetch or train it again"
            )

    with ExitStack() as hooks:
        for handle in (
            module.register_module_parameter_registration_hook(count),
            module.register_module_buffer_registration_hook(count),
            module.register_module_module_registration_hook(count_layer),
        ):
            hooks.callback(handle.remove)
        yield

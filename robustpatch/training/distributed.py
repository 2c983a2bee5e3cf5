"""One training by several processes, as torchrun starts them; alone, each of these functions does nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from robustpatch.errors import InvalidInput


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the other processes of torchrun, where it started any, and leave them at the end; gives the device of this
    one: "cuda" becomes the GPU of its number on this machine. GPUs talk through NCCL, all else through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    kind = torch.device(device)
    if kind.type == "cuda":
        if kind.index is not None:
            raise InvalidInput(f"device is {device!r}, one GPU for all of torchrun's processes; use cuda")
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # Of 1×1 convolutions, whose gradients lie in memory as their weights do, under other strides.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield device
    finally:
        distributed.destroy_process_group()


def _grouped() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def rank() -> int:
    """The number of this process; 0 is the one that writes and reports."""
    return distributed.get_rank() if _grouped() else 0


def world() -> int:
    """The number of processes."""
    return distributed.get_world_size() if _grouped() else 1


def shared(module: nn.Module, some_unused: bool = False) -> nn.Module:
    """The module with gradients that are the mean over all processes; `some_unused`: a step may leave weights out. Each
    step begins with the running statistics of process 0.
    """
    if world() == 1:
        return module
    return DistributedDataParallel(module, find_unused_parameters=some_unused)


def mean(value: Tensor) -> Tensor:
    """The mean over all processes, in each of them."""
    if world() > 1:
        value = value.detach().clone()
        distributed.all_reduce(value)
        value /= world()
    return value


def agree(module: nn.Module) -> None:
    """Set the running statistics of the module, which differ by each process's last images, to their mean."""
    if world() > 1:
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.copy_(mean(buffer))


def wait() -> None:
    """Waits for all processes: files that process 0 wrote before can be read after."""
    if world() > 1:
        distributed.barrier()

"""The number of ablated images that fit into free memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")
_PASS, _GRADIENT = 32, 128  # bytes worked on for each byte of network input, without and with gradients
_ENOUGH = {"cpu": 2**22}  # values of network input beyond which a chunk computes no faster
_MANY = 2**28  # elsewhere


def free(device: torch.device) -> int:
    """Bytes that can be had now: of a GPU, with what torch keeps there unused; of a CPU, within its control group."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(0, int(limit) - used)) if limit.isdigit() else available


def chunk(values: int, device: torch.device, gradients: bool) -> int:
    """The number of ablated images to score at once, each of so many values of network input.

    Enough to keep the device busy, and no more than half of its free memory holds, a network counted at 32 times the
    memory of its input, 128 times where a backward pass will want it all again: ResNet-50 takes 10 and 75.
    """
    enough = _ENOUGH.get(device.type, _MANY) // values
    held = free(device) // 2 // (4 * values * (_GRADIENT if gradients else _PASS))
    return max(1, min(enough, held))

"""Which errors say that a model has no gradient in the image, and which say something else."""

from __future__ import annotations

import pytest
import torch

from attacks.gradient import NotDifferentiable, differentiate


def test_failing_memory_is_no_missing_gradient():
    """Else an ensemble would go on without all that climbs, and say nothing."""

    def scarce(x):
        if torch.is_grad_enabled():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return x.flatten(1).sum(dim=1), torch.zeros(len(x), dtype=torch.long)

    def whole(x):
        return x.detach().flatten(1).sum(dim=1), torch.zeros(len(x), dtype=torch.long)

    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="allocate memory"):
        differentiate(scarce, x)
    with pytest.raises(NotDifferentiable):
        differentiate(whole, x)

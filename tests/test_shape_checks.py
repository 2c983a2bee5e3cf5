"""The suite checks the shapes that functions state: arguments, results and types, also after calls that were right."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from robustpatch.encoding import ComplementChannels
from tests import shape_checks


def test_a_wrong_shape_is_refused_each_time():
    """Of other dimensions, of other numbers than those of another argument, and of another type."""
    encode, x, kept = ComplementChannels(), torch.rand(2, 1, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool)
    for _ in range(2):
        encode(x, kept)
        for wrong in ((x, kept[0]), (x, kept[:1]), (x, kept[:, :3]), (x, kept.long()), (x.double().long(), kept)):
            with pytest.raises(TypeCheckError):
                encode(*wrong)


def test_a_wrong_result_is_refused(monkeypatch):
    """In each file of tests anew, for the same arguments."""
    encode, x, kept = ComplementChannels(), torch.rand(2, 1, 4, 5), torch.ones(2, 4, 5, dtype=torch.bool)
    encode(x, kept)
    monkeypatch.setattr(torch, "cat", lambda parts, dim: parts[0][None])
    shape_checks.forget()
    with pytest.raises(TypeCheckError):
        encode(x, kept)

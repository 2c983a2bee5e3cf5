"""Chunks follow the memory at hand."""

from __future__ import annotations

import pytest
import torch

from robustpatch import Columns, SmoothedClassifier, memory
from tests import toys

CPU, IMAGE = torch.device("cpu"), 6 * 224 * 224


def test_free_memory_is_within_the_machine(tmp_path, monkeypatch):
    """What the machine has, or less in a control group; a group without a limit, or none, changes nothing."""
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    alone = memory.free(CPU)
    assert 0 < alone <= memory.psutil.virtual_memory().total
    for limit, used, expected in (("max", "5", None), ("3000", "1000", 2000), ("10", "500", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text(used + "\n")
        found = memory.free(CPU)
        assert found == expected if expected is not None else found > 10_000


@pytest.mark.parametrize(
    ("gib", "gradients", "expected"), [(64, False, 13), (0.25, False, 3), (0.25, True, 1), (0, True, 1)]
)
def test_a_chunk_is_what_half_the_memory_holds(monkeypatch, gib, gradients, expected):
    """Enough to be fast where there is memory, fewer where there is little, always one."""
    monkeypatch.setattr(memory, "free", lambda _: int(gib * 2**30))
    assert memory.chunk(IMAGE, CPU, gradients) == expected


def test_little_memory_changes_chunks_and_no_score(monkeypatch):
    """The classifier asks for its chunk: with no memory, image by image."""
    seen: list[int] = []
    base = toys.linear()
    base.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    model, x = SmoothedClassifier(base, Columns(2), num_classes=toys.CLASSES).eval(), toys.images(2)
    with torch.no_grad():
        scores = model.scores(x)
        monkeypatch.setattr(memory, "free", lambda _: 0)
        torch.testing.assert_close(model.scores(x), scores)
    assert seen == [16] + [1] * 16

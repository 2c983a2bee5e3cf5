"""The same votes away from the guard: in float32 and bfloat16, in any chunks, compiled or not, one process or two."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from shutil import which

import numpy as np
import pytest
import torch
from torch import Tensor

from robustpatch.ablations.kinds import Columns, Rows
from robustpatch.classifiers import base_check
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import GUARD_FLOAT32, GUARD_REDUCED, Threshold, TopOne
from tests import toys
from tests.killed import server

TYPES = {torch.float32: GUARD_FLOAT32, torch.bfloat16: GUARD_REDUCED}


def strip() -> torch.nn.Module:
    """One pass, its logits half as far apart as the toys', whose bfloat16 moves scores by more than the guard."""
    net = toys.strip(Columns(2), seed=2)
    with torch.no_grad():
        net.head[-1].weight /= 2  # type: ignore[operator]
        net.head[-1].bias /= 2  # type: ignore[operator]
    return net


def models() -> dict[str, SmoothedClassifier]:
    return {
        "enumeration": toys.smoothed(),
        "rows, top one": toys.smoothed(ablation=Rows(2), voting=TopOne()),
        "one pass": toys.smoothed(strip(), voting=Threshold(0.28)),
    }


def check(scores: Tensor, guard: float, model: SmoothedClassifier, x: Tensor) -> None:
    """Other scores of these images: within the guard of the model's, in float32; the same votes but for close ones."""
    reference = model.scores(x)
    assert (scores - reference).abs().max() <= guard
    votes, others = model.voting.votes(reference, guard), model.voting.votes(scores, guard)
    assert torch.equal(others.cast[~votes.close], votes.cast[~votes.close])
    assert float((~votes.close).float().mean()) > 0.5
    assert len(votes.counts.unique(dim=0)) > 2, "the toy must not be constant"


@pytest.mark.parametrize("chunk", [1, 5, 8, 1000, None])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", models())
def test_precision_and_chunks(name, dtype, chunk):
    model, x = models()[name], toys.images(12)
    other = copy.deepcopy(model).to(dtype)
    other.chunk = chunk
    with torch.no_grad():
        assert other.guard == TYPES[dtype]
        check(other.scores(x), other.guard, model, x)


@pytest.mark.skipif(not any(map(which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler")
def test_compiled(monkeypatch):
    """By torch's own compiler; what was found of the base before is not taken for granted."""
    model, x = models()["enumeration"], toys.images(12)
    other = copy.deepcopy(model)
    other.certify(x, PatchThreat(1, 1))
    found, original = [], base_check.base_is_sound
    monkeypatch.setattr(base_check, "base_is_sound", lambda *a, **b: found.append(b["again"]) or original(*a, **b))
    other.base.compile(dynamic=True)
    with torch.no_grad():
        check(other.scores(x), other.guard, model, x)
    other.certify(x, PatchThreat(1, 1))
    assert found == [False]


def answer(packed: bytes) -> tuple[int, list[np.ndarray]]:
    """This process, and the scores of the models for their images."""
    made, x = pickle.loads(packed)
    with torch.no_grad():
        return os.getpid(), [model.scores(x).numpy() for model in made]


def test_two_processes():
    """Each scores every other image, as those of torchrun or Ray would; both precisions."""
    x, own = toys.images(12), models()
    made = [copy.deepcopy(model).to(dtype) for model in own.values() for dtype in TYPES]
    with ProcessPoolExecutor(1, server()) as first, ProcessPoolExecutor(1, server()) as second:
        asked = [pool.submit(answer, pickle.dumps((made, x[k::2]))) for k, pool in enumerate((first, second))]
        found = [future.result(timeout=120) for future in asked]
    assert len({os.getpid(), *(process for process, _ in found)}) == 3
    for number, model in enumerate(made):
        scores = torch.empty(len(x), *found[0][1][number].shape[1:])
        for k, (_, theirs) in enumerate(found):
            scores[k::2] = torch.from_numpy(theirs[number])
        with torch.no_grad():
            check(scores, model.guard, list(own.values())[number // len(TYPES)], x)

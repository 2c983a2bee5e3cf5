"""Every setting of a training has its effect, or is refused before anything is done."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.training.optimizer import momenta
from tests import helpers

NETWORK = {"name": "strip", "widths": [2, 2], "hidden": 4}
OPTIONS = {"network": NETWORK, "epochs": 1, "batch_size": 4, "patch": "2x2", "bfloat16": False}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.noise()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momentum_has_an_effect(images, tmp_path, optimizer):
    """Of other momenta there are other weights, of none others again."""
    found = []
    for momentum in (0.0, 0.5, 0.9):
        config = TrainingConfig(**OPTIONS, optimizer=optimizer, lr=0.01, momentum=momentum)
        model = train(config, images, images, tmp_path / str(momentum))
        found.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_cycle_of_momenta():
    """Around the middle that is named, within [0, 1); that of 0.9 is torch's own."""
    assert momenta(0.9) == (0.85, 0.95)
    assert momenta(0.0) == (0.0, 0.0)
    for middle in (0.01, 0.5, 0.97, 0.999):
        low, high = momenta(middle)
        assert 0 <= low < middle < high < 1
        assert (low + high) / 2 == pytest.approx(middle)


@pytest.mark.parametrize("name", [own.name for own in fields(TrainingConfig)])
def test_values_of_other_types_and_no_numbers(name):
    """Are refused by name and value, in one place for the command, recipes and callers."""
    default = {own.name: own for own in fields(TrainingConfig)}[name].default
    wrong: list[object] = [["a"], object()]
    wrong += [1.5, "1", True] if isinstance(default, int) and not isinstance(default, bool) else []
    wrong += [float("inf"), float("nan"), -float("inf"), "1", False] if isinstance(default, float) else []
    wrong += [1, "yes", None] if isinstance(default, bool) else []
    wrong += [1, 0.5, b"a"] if default is None or isinstance(default, str) else []
    wrong += [10**400, 2**20_000] if isinstance(default, int | float) and not isinstance(default, bool) else []
    wrong = [["a"], 3, object(), {}] if name == "network" else wrong
    for value in wrong:
        with pytest.raises(InvalidInput, match=f"^{name} is "):
            TrainingConfig(**{name: value})


@pytest.mark.parametrize("momentum", [1.0, 1.5])
def test_momentum_that_forgets_nothing(momentum):
    with pytest.raises(InvalidInput, match=r"momentum is 1.*; it must be below 1"):
        TrainingConfig(momentum=momentum)


@pytest.mark.parametrize("seed", [2**32, 2**62, -(2**63)])
def test_seeds_of_which_no_epoch_can_make_its_own(seed):
    with pytest.raises(InvalidInput, match=r"seed is -?\d+; it must be (above -|below )2\^32"):
        TrainingConfig(seed=seed)

"""Learning from a teacher: half of the cross-entropy is against its scores of the same ablations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustpatch.ablations.kinds import Columns
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.training.losses import objective
from tests import helpers, toys

NETWORK = {"name": "strip", "widths": [4], "hidden": 4}
CONFIG = TrainingConfig(network=NETWORK, epochs=2, batch_size=30, bfloat16=False, patch="2x2", ablations=3)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(60)


@pytest.mark.parametrize("local", [1.0, 0.5])
def test_half_of_the_loss_is_against_the_teachers_scores(local):
    """By hand, for the ablations drawn; the teacher gets no gradient and stays as it is."""
    model, teacher = (toys.smoothed(toys.strip(Columns(2), seed=seed)) for seed in (0, 1))
    before = {name: weights.clone() for name, weights in teacher.state_dict().items()}
    x, y = toys.images(5), torch.tensor([0, 1, 2, 0, 1])
    config = replace(CONFIG, certificate=1.0, local=local) if local < 1 else CONFIG
    alone, taught = (
        objective(model, x, y, config, None, None, torch.Generator().manual_seed(3), some) for some in (None, teacher)
    )
    n = Columns(2).count(*x.shape[2:])
    index = torch.randperm(n, generator=torch.Generator().manual_seed(3))[:3]
    told, own = teacher.scores(x, index), model.logits(x, index).log_softmax(dim=-1)
    wanted = (alone - local * (told * own).sum(dim=-1).mean()) / 2
    assert float(taught.detach()) == pytest.approx(float(wanted.detach()), abs=1e-5)
    taught.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(torch.equal(before[name], weights) for name, weights in teacher.state_dict().items())


def test_a_teacher_changes_what_is_learned_and_is_kept_out_of_the_checkpoint(images, tmp_path):
    """Other weights than without; stopped and resumed, the same to the bit; no weights of the teacher's are saved."""
    first = train(CONFIG, images, images, tmp_path / "first")
    config = replace(CONFIG, seed=1, teacher=str(tmp_path / "first" / "checkpoint.safetensors"))
    alone = train(replace(config, teacher=None), images, images, tmp_path / "alone")
    taught = train(config, images, images, tmp_path / "taught")
    assert taught.state_dict().keys() == first.state_dict().keys()
    assert any(not torch.equal(taught.state_dict()[name], weights) for name, weights in alone.state_dict().items())

    def stop(epoch: int, step: int, loss: float) -> None:
        if epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, images, images, tmp_path / "stopped", on_step=stop)
    resumed = train(config, images, images, tmp_path / "stopped", resume=True)
    assert all(torch.equal(resumed.state_dict()[name], weights) for name, weights in taught.state_dict().items())


def test_a_teacher_of_something_else_is_refused(images, tmp_path):
    """Another ablation, another data set, and none for whole images."""
    with pytest.raises(InvalidInput, match="ablation"):
        train(replace(CONFIG, teacher="mnist-rows2"), images, images, tmp_path / "a")
    with pytest.raises(InvalidInput, match="teacher is mnist-columns2, a checkpoint of another data set"):
        train(replace(CONFIG, teacher="mnist-columns2"), images, images, tmp_path / "b")
    with pytest.raises(InvalidInput, match="teacher is mnist-columns2, but without an ablation"):
        TrainingConfig(ablation=None, network={"name": "small-cnn"}, teacher="mnist-columns2")
    sparse = replace(CONFIG, ablation="sparse:5", network={"name": "mlp"}, teacher="mnist-sparse5")
    with pytest.raises(InvalidInput, match="teacher is mnist-sparse5, but a RandomizedClassifier is trained"):
        train(sparse, images, images, tmp_path / "c")

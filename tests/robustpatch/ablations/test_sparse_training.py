"""Sparse classifiers from training to the checkpoint: their network, their loss, what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.checkpoints import load_checkpoint, model_from, network_of, save_checkpoint
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.encoding import ComplementChannels
from robustpatch.errors import InvalidInput
from robustpatch.networks import MLP, build
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.train import app
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.training.losses import majority_loss
from robustpatch.training.validation import accuracy
from robustpatch.voting.rules import Threshold, TopOne
from tests import helpers, toys

CONFIG = TrainingConfig(
    ablation="sparse:40",
    network={"name": "mlp", "widths": [24]},
    patch="1x1",
    epochs=2,
    batch_size=30,
    ablations=3,
    bfloat16=False,
)


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(120)


def test_a_resumed_run_ends_with_the_same_weights(images, tmp_path):
    """Stopped in the second epoch and resumed, bitwise the run left alone; its checkpoint is a randomized classifier
    of the same shares, and says how it votes.
    """
    alone, _ = helpers.alone_and_resumed(CONFIG, images, tmp_path)
    loaded = load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors")
    x, _ = images.batch(range(5))
    assert isinstance(loaded.model, RandomizedClassifier)
    assert torch.equal(loaded.model(x), alone(x))
    assert (loaded.model.ablation, loaded.model.voting) == (SparseAblation(40), TopOne())
    assert {key: loaded.config[key] for key in ("ablation", "voting", "ablations")} == {
        "ablation": "sparse:40",
        "voting": "top1",
        "ablations": 3,
    }


def test_it_learns(images, tmp_path):
    """The loss falls, the smoothed vote is better than a single ablation, and nothing is called certified."""
    rows: list = []
    config = replace(CONFIG, epochs=8, ablations=8)
    model = train(config, images, images, tmp_path, on_epoch=rows.append)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["clean"] > rows[-1]["base"] > 0.3
    assert 0 < rows[-1]["certifiable"] <= rows[-1]["clean"]
    assert {row["certified_margin"] for row in rows} == {row["certified_exact"] for row in rows} == {None}
    assert json.loads((tmp_path / "history.json").read_text()) == rows
    assert not any(module.training for module in model.modules())


def test_accuracy_of_a_randomized_classifier(images):
    """Counted from the shares, and the mode restored: the vote, the single ablation, and shares above 1/2 + τ."""
    model = toys.seeded(lambda: model_from({**config_of(), "guard": None}))
    model.train()
    found = accuracy(model, images, PatchThreat(1, 1))
    assert model.training
    x, y = images.batch(range(120))
    with torch.no_grad():
        shares = model.eval()(x)
    own = shares[torch.arange(120), y]
    chance = 40 / 196
    assert found.clean == pytest.approx(float((shares.argmax(dim=1) == y).float().mean()), abs=0.02)
    assert found.base == pytest.approx(float(own.mean()))
    assert found.certifiable == pytest.approx(float((own > 0.5 + chance).float().mean()))
    assert accuracy(model, images, None).certifiable is None


def config_of(**options):
    common = {"ablation": "sparse:40", "encoding": "complement", "image_shape": [1, 14, 14], "voting": "top1"}
    return {**common, "network": {"name": "mlp", "widths": [8]}, "class_names": list("0123456789"), **options}


def test_every_image_has_ablations_of_its_own():
    """Two equal images see different pixels, and equal ones with an equal generator; gradients reach the weights."""
    model = toys.seeded(lambda: model_from(config_of(guard=None)))
    x = toys.images(1, size=(14, 14)).expand(2, -1, -1, -1)
    draw = [model.sampled_logits(x, 5, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draw[0].shape == (2, 5, 10)
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(draw[0][0], draw[0][1])
    draw[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.base.parameters())
    bands = RandomizedClassifier(toys.linear(), Columns(2), num_classes=toys.CLASSES).eval()
    logits = bands.sampled_logits(toys.images(2), 50, torch.Generator().manual_seed(0))
    own = SmoothedClassifier(bands.base, Columns(2), num_classes=toys.CLASSES).eval().logits(toys.images(2))
    assert ((logits[:, :, None] - own[:, None]).abs().amax(dim=3).amin(dim=2) < 1e-5).all()


def test_a_checkpoint_goes_round(tmp_path):
    """Guard and encoding too; another ablation, a threshold and a smoothed classifier's place are refused."""
    config = config_of(guard=0.02, encoding="mask")
    model = toys.seeded(lambda: model_from(config))
    path = tmp_path / "sparse.safetensors"
    save_checkpoint(path, model, config)
    loaded = load_checkpoint(path, ablation=SparseAblation(40))
    assert (loaded.model.voting, loaded.model.encoding.name, loaded.model.num_classes) == (TopOne(0.02), "mask", 10)
    assert torch.equal(network_of(loaded.model).head.weight, model.base.head.weight)
    for wrong in (SparseAblation(5), Columns(2)):
        with pytest.raises(InvalidInput, match=rf"ablation is {wrong}, but .* was trained for sparse:40"):
            load_checkpoint(path, ablation=wrong)
    with pytest.raises(InvalidInput, match=r"voting is threshold:0.3; .* of top-1 votes"):
        load_checkpoint(path, voting=Threshold(0.3))
    for call in (lambda: loaded.smoothed, lambda: SmoothedClassifier.from_pretrained(path)):
        with pytest.raises(InvalidInput, match=r"of a sparse ablation, whose votes can only be sampled; name one of a"):
            call()


def test_settings_that_a_sparse_ablation_gives_no_meaning():
    """A threshold of one's own, and a weight without what it weighs."""
    with pytest.raises(InvalidInput, match=r"voting is threshold:0.4, but a sparse ablation .*; drop --voting"):
        replace(CONFIG, voting="threshold:0.4")
    with pytest.raises(InvalidInput, match=r"clean is 0.5, a weight within the certificate's loss; set --certificate"):
        replace(CONFIG, clean=0.5)
    assert replace(CONFIG, voting="top1").for_checkpoint() == {**CONFIG.for_checkpoint()}
    with pytest.raises(InvalidInput, match="sparse keep is 0"):
        replace(CONFIG, ablation="sparse:0")


def test_the_network():
    """279,050 parameters on MNIST; images apart in evaluation mode; any widths; whole images, other precisions."""
    net = toys.seeded(MLP)
    assert sum(tensor.numel() for tensor in net.parameters()) == 279_050
    x = toys.images(6, 2, (28, 28))
    assert net(x).shape == (6, 10)
    torch.testing.assert_close(net(x[:1]), net(x)[:1], atol=1e-6, rtol=0)
    options = {"image_shape": (3, 5, 7), "num_classes": 4, "options": {"widths": []}}
    seen = build("mlp", ablation=SparseAblation(3), encoding=ComplementChannels(), **options)
    assert seen(torch.zeros(2, 6, 5, 7)).shape == (2, 4)
    whole = build("mlp", ablation=None, encoding=None, **{**options, "options": {"widths": [9, 3, 5]}}).eval()
    assert whole(torch.zeros(2, 3, 5, 7)).shape == (2, 4)
    assert whole.to(torch.bfloat16)(torch.zeros(2, 3, 5, 7)).dtype == torch.bfloat16
    with pytest.raises(InvalidInput, match="widths is "):
        MLP(widths=[3, 0])
    with pytest.raises(InvalidInput, match="ablation is sparse:3; use mlp"):
        build("strip", ablation=SparseAblation(3), encoding=ComplementChannels(), **options)


def test_the_command_line(tmp_path):
    """`--ablation sparse:K`, from folders of images to a checkpoint; shares are not called certified."""
    for number, name in enumerate(("train/cat", "train/dog")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (20 * i, 250 * number, 0)).save(tmp_path / name / f"{i:02d}.png")
    options = ["--dataset", "folder", "--data-root", str(tmp_path), "--epochs", "1", "--batch-size", "4"]
    options += ["--ablation", "sparse:3", "--ablations", "2", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "certifiable, base" in " ".join(done.output.split())
    assert "(exact)" not in done.output
    loaded = load_checkpoint(tmp_path / "out" / "checkpoint.safetensors")
    assert isinstance(loaded.model, RandomizedClassifier)
    assert isinstance(loaded.model.base, MLP)


def test_the_majority_loss_counts_images_that_miss_a_majority():
    """Of votes for 2, 2, 1 and 0 out of three classes, margins by hand; with the true class ahead the loss falls, and
    its gradient raises the true class and lowers the others.
    """
    logits = torch.tensor([[[0.0, 0, 9], [0, 0, 9], [0, 9, 0], [9, 0, 0]]], requires_grad=True)
    chance = 0.06
    for y, own, rival in ((2, 0.5, 0.25), (1, 0.25, 0.5)):
        expected = 1 / (1 + math.exp((own - 0.5 - chance) / (chance / 3)))
        expected += 0.5 / (1 + math.exp((own - rival) / (chance / 3)))
        loss = majority_loss(logits, torch.tensor([y]), chance, 0.5)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(majority_loss(logits, torch.tensor([2]), chance, 0.5), logits)
    assert (gradient[..., 2] <= 0).all()
    assert (gradient[..., :2] >= 0).all()
    assert gradient.abs().sum() > 0

"""Training: interrupted and resumed to the bit, reproducible, and refused where options differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.exact import certify_votes
from robustpatch.checkpoints import load_checkpoint, network_of
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.networks import SmallCNN, UnionNet
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.train import app
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from robustpatch.training.losses import cast_votes, certificate_loss
from robustpatch.training.validation import accuracy
from robustpatch.voting.rules import Threshold, TopOne, Votes
from tests import helpers, toys

NETWORK = {"name": "strip", "widths": [4, 4], "hidden": 8}
STRIP = TrainingConfig(network=NETWORK, epochs=2, batch_size=40, bfloat16=False)
PLAIN = {"network": {"name": "small-cnn", "widths": [8, 8], "hidden": 16}, "ablation": None}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(120)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bfloat16": True},
        {"ablations": 3},
        {"seed": 7, "ablation": "rows:3/2"},
        {"optimizer": "adamw", "lr": 0.01},
        {"crop": 2, "flip": True, "zoom": 0.5, "ablations": 3},
        {"certificate": 10.0, "cast": True},
        PLAIN,
    ],
)
def test_a_resumed_run_ends_with_the_same_weights(images, tmp_path, options):
    """Stopped in the middle of the second epoch and resumed: bitwise the weights of the run left alone."""
    alone, _ = helpers.alone_and_resumed(replace(STRIP, **options), images, tmp_path)
    histories = [json.loads((tmp_path / run / "history.json").read_text()) for run in ("alone", "stopped")]
    timeless = [[{k: v for k, v in row.items() if k != "seconds"} for row in history] for history in histories]
    assert timeless[0] == timeless[1]
    loaded = load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors").model
    x, _ = images.batch(range(5))
    assert torch.equal(loaded(x), alone(x))
    assert torch.equal(network_of(loaded)(x), network_of(alone)(x))


def test_training_learns_and_leaves_the_random_state_alone(images, tmp_path):
    """The loss falls; another seed gives other weights; the caller's generator is where it was."""
    state = torch.get_rng_state()
    rows: list = []
    model = train(replace(STRIP, epochs=4), images, images, tmp_path / "a", on_epoch=rows.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["certified_margin"] <= row["certified_exact"] <= row["clean"] for row in rows)
    assert not any(module.training for module in model.modules())
    other = train(replace(STRIP, epochs=4, seed=1), images, images, tmp_path / "b")
    assert not torch.equal(model.base.embedding, other.base.embedding)


def test_what_is_resumed_must_be_the_same_run(images, tmp_path):
    """A used folder without resume, and other options with it, are refused and named."""
    train(replace(STRIP, epochs=1), images, images, tmp_path)
    with pytest.raises(InvalidInput, match="already holds a training run; continue it with --resume"):
        train(replace(STRIP, epochs=1), images, images, tmp_path)
    for options in ({"lr": 0.2}, {"epochs": 2}, {"seed": 1}, {"weight_decay": 0.0}):
        with pytest.raises(InvalidInput, match=f"trained with another {next(iter(options))};"):
            train(replace(STRIP, **{"epochs": 1, **options}), images, images, tmp_path, resume=True)


@pytest.mark.parametrize("batch_size", [120, 60, 40, 30])
def test_very_short_runs(images, tmp_path, batch_size):
    """One to four steps in all: the learning rate has a cycle to go through."""
    rows: list = []
    train(replace(STRIP, epochs=1, batch_size=batch_size), images, images, tmp_path, on_epoch=rows.append)
    assert len(rows) == 1


def test_options_that_are_none(images, tmp_path):
    """Epochs, batch size, rates: the parameter and its value."""
    for options in (
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"ablations": -1},
        {"crop": -1},
        {"zoom": 0.0},
        {"zoom": 1.5},
    ):
        with pytest.raises(InvalidInput, match=f"{next(iter(options))} is"):
            replace(STRIP, **options)
    with pytest.raises(InvalidInput, match="more than the 120 training images"):
        train(replace(STRIP, batch_size=121), images, images, tmp_path)
    with pytest.raises(InvalidInput, match="crop is 14, but the images have"):
        train(replace(STRIP, crop=14), images, images, tmp_path)
    assert not list(tmp_path.iterdir())


def test_accuracy_counts_right_and_certified(images):
    """Against one image at a time; the mode of the model is restored."""
    model = toys.smoothed(toys.strip(Columns(2), (14, 14), classes=10), classes=10)
    model.train()
    found = accuracy(model, images, PatchThreat(1, 1))
    assert model.training
    model.eval()
    hits = [0, 0, 0]
    for i in range(len(images)):
        x, y = images.batch([i])
        right = bool(model.predict(x) == y)
        hits[0] += right
        hits[1] += right and bool(model.certify(x, PatchThreat(1, 1), "margin").certified)
        hits[2] += right and bool(model.certify(x, PatchThreat(1, 1)).certified)
    assert [found.clean, found.certified_margin, found.certified_exact] == pytest.approx([h / 120 for h in hits])


def test_the_command_line_refuses_in_one_line(tmp_path):
    """Exit status 2 and "error: ...", for options and for data alike."""
    common = ["--output", str(tmp_path / "run"), "--data-root", str(tmp_path), "--dataset", "mnist-sample"]
    for options in (["--epochs", "0"], ["--dataset", "none"], ["--ablation", "stripes:2"], []):
        done = CliRunner().invoke(app, [*common, *options])
        assert done.exit_code == 2, done.output
        assert "error: " in done.output


def test_the_certificate_loss_is_the_exact_certificate_of_soft_votes():
    """With votes of 0 and 1 its margin is the certificate's for the true class, but for ties and a wrong prediction."""
    votes = torch.rand(50, 9, 3, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.9, 0.3, 0.1])
    ablation, threat = Columns(1), PatchThreat(1, 2)
    touched = ablation.touched(threat, 4, 9)
    sets = touched.member(torch.arange(len(touched.sizes)))
    found = certify_votes(Votes(votes, torch.zeros_like(votes)), ablation, threat, (4, 9))
    right = found.prediction == 0  # the lowest index: no rival wins ties
    assert 10 < right.sum() < 50 or right.all()
    for i in right.nonzero()[:, 0]:
        loss = certificate_loss(votes[i : i + 1].float(), torch.zeros(1, dtype=torch.long), sets, 2.0)
        assert float(loss) == pytest.approx(float(torch.sigmoid(-found.margin[i] / 2.0)), abs=1e-6)


@pytest.mark.parametrize("voting", [Threshold(0.3), Threshold(0.15), TopOne()])
def test_votes_as_cast_have_the_gradient_of_the_sharp_ones(voting):
    """0 and 1 as in the certificate, at any threshold, and its loss is then that of the certificate's very margin."""
    logits = (3 * torch.randn(40, 9, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    counted, sharp = cast_votes(logits, voting), voting.sharp(logits)
    cast = voting.votes(logits.detach().softmax(dim=-1), 0.0).cast
    assert 0 < int(cast.sum()) < cast.numel()
    assert torch.equal(counted.detach().round().bool(), cast)
    assert float((counted.detach() - cast.float()).abs().max()) < 1e-6
    weight = torch.randn(sharp.shape, generator=torch.Generator().manual_seed(1))
    found, expected = (torch.autograd.grad((votes * weight).sum(), logits)[0] for votes in (counted, sharp))
    assert torch.equal(found, expected)
    assert float(found.abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ablations": 3},
        {"ablation": "rows:3/2", "voting": "top1"},
        {"ablation": "blocks:4", "network": {"name": "block", "widths": [8]}, "ablations": 20},
        {"ablation": "columns:3", "network": PLAIN["network"], "ablations": 3},
    ],
)
def test_the_certificate_counts_cast_votes_of_any_ablation_and_base(images, tmp_path, options):
    """One epoch by cast votes moves the weights elsewhere than one by soft votes, from the same ones."""
    config = replace(STRIP, certificate=10.0, epochs=1, batch_size=60, **options)
    soft, cast = (train(replace(config, cast=c), images, images, tmp_path / str(c)).state_dict() for c in (False, True))
    assert any(not torch.equal(soft[name], cast[name]) for name in soft)
    assert all(bool(torch.isfinite(weights).all()) for weights in cast.values())


def test_cast_votes_are_for_the_certificates_loss():
    """Refused where no certificate is trained through, and where votes are counted so anyway."""
    with pytest.raises(InvalidInput, match=r"cast is True, a way to count .*; set --certificate too"):
        replace(STRIP, cast=True)
    sparse = {"ablation": "sparse:5", "network": {"name": "mlp"}, "certificate": 1.0}
    with pytest.raises(InvalidInput, match=r"cast is True, but with a sparse ablation .*; drop --cast"):
        replace(STRIP, cast=True, **sparse)
    with pytest.raises(InvalidInput, match=r"cast is True, but without an ablation"):
        replace(STRIP, cast=True, **PLAIN)


@pytest.mark.parametrize(
    ("options", "only"),
    [
        ({}, "head"),
        ({"network": PLAIN["network"], "ablation": "blocks:4"}, "head"),
        ({"ablation": "columns:2+rows:2", "network": {"name": "union", "parts": [NETWORK, NETWORK]}}, "head"),
    ],
)
def test_only_the_weights_named_are_trained(images, tmp_path, options, only):
    """All others, batch statistics too, stay to the bit; stopped and resumed it ends the same."""
    config = replace(STRIP, **options, lr=0.05)
    start = tmp_path / "start" / "checkpoint.safetensors"
    train(replace(config, epochs=1), images, images, start.parent)
    before = network_of(load_checkpoint(start).model).state_dict()
    alone, _ = helpers.alone_and_resumed(replace(config, start=str(start), only=only), images, tmp_path)
    after = network_of(alone).state_dict()
    changed = {name for name, weights in before.items() if not torch.equal(weights, after[name])}
    assert changed == {name for name in before if only in name.split(".")}
    assert all(weight.requires_grad for weight in alone.parameters())


def test_weights_to_train_that_are_not_there(images, tmp_path):
    """A name that the network does not have, and one without a start: refused before the first step."""
    with pytest.raises(InvalidInput, match="only is head, but all other weights would stay as drawn; set --start"):
        train(replace(STRIP, only="head"), images, images, tmp_path / "a")
    train(replace(STRIP, epochs=1), images, images, tmp_path / "start")
    config = replace(STRIP, start=str(tmp_path / "start" / "checkpoint.safetensors"), only="heads")
    with pytest.raises(InvalidInput, match=r"only is heads, .* it has embedding, convolutions, norms, head"):
        train(config, images, images, tmp_path / "b")


def test_training_starts_from_a_checkpoint_and_through_the_certificate(images, tmp_path):
    """`start` and `certificate` change the weights; a checkpoint of another network is refused."""
    train(STRIP, images, images, tmp_path / "first")
    start = str(tmp_path / "first" / "checkpoint.safetensors")
    tuned = replace(STRIP, start=start, certificate=1.0, epochs=1, lr=0.01)
    first = load_checkpoint(start).model.base.state_dict()
    second = train(tuned, images, images, tmp_path / "second").base.state_dict()
    assert any(not torch.equal(first[name], second[name]) for name in first)
    assert max(float((first[name] - second[name]).abs().max()) for name in ("embedding", "head.0.weight")) < 0.2
    with pytest.raises(InvalidInput, match="another network"):
        train(replace(tuned, network={**NETWORK, "hidden": 9}), images, images, tmp_path / "third")


def test_training_without_momentum_resumes_and_a_damaged_state_is_refused(images, tmp_path):
    """No momentum buffers to save; half a state file is named and not loaded."""
    train(replace(STRIP, momentum=0.0), images, images, tmp_path)
    train(replace(STRIP, momentum=0.0), images, images, tmp_path, resume=True)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:99])
    with pytest.raises(InvalidInput, match="damaged"):
        train(replace(STRIP, momentum=0.0), images, images, tmp_path, resume=True)


def test_an_undefended_network_learns_the_whole_images(images, tmp_path):
    """The loss falls well below chance; clean accuracy is counted, a certified one is not; the checkpoint says why."""
    rows: list = []
    config = replace(STRIP, **{**PLAIN, "epochs": 20, "batch_size": 20, "lr": 0.2})
    model = train(config, images, images, tmp_path, on_epoch=rows.append)
    assert rows[-1]["loss"] < 0.5 < rows[0]["loss"]
    assert {row["certified_margin"] for row in rows} == {row["certified_exact"] for row in rows} == {None}
    x, y = images.batch(range(120))
    assert rows[-1]["clean"] == pytest.approx(float((model(x).argmax(dim=1) == y).float().mean()))
    kept = load_checkpoint(tmp_path / "checkpoint.safetensors").config
    assert kept["ablation"] is None
    assert not {"voting", "guard", "encoding", "patch", "ablations", "certificate"} & set(kept)
    again = replace(config, start=str(tmp_path / "checkpoint.safetensors"), epochs=1, lr=0.0)
    same = train(again, images, images, tmp_path / "again")
    assert all(torch.equal(same.state_dict()[name], weights) for name, weights in model.state_dict().items())
    smoothed = replace(STRIP, network=PLAIN["network"], start=again.start)
    with pytest.raises(InvalidInput, match="is undefended and has none"):
        train(smoothed, images, images, tmp_path / "smoothed")
    train(replace(smoothed, start=None, epochs=1), images, images, tmp_path / "smoothed")
    back = replace(again, start=str(tmp_path / "smoothed" / "checkpoint.safetensors"))
    with pytest.raises(InvalidInput, match="another network"):
        train(back, images, images, tmp_path / "back")
    with pytest.raises(InvalidInput, match="trained with another ablation"):
        train(
            replace(smoothed, start=None, ablation=None, epochs=1), images, images, tmp_path / "smoothed", resume=True
        )


@pytest.mark.parametrize(
    "options", [{"voting": "top1"}, {"encoding": "mask"}, {"patch": "2x2"}, {"ablations": 1}, {"certificate": 1.0}]
)
def test_settings_without_an_ablation_to_act_on(options):
    """Refused, with the option to drop; at their defaults they are not there."""
    with pytest.raises(InvalidInput, match=f"{next(iter(options))} is .*; drop --{next(iter(options))} or name an abl"):
        replace(STRIP, **PLAIN, **options)
    replace(STRIP, **options)
    replace(STRIP, **PLAIN)


@pytest.mark.parametrize("other", [{"class_names": tuple("abcdefghij")}, {"image_shape": (1, 13, 14)}])
def test_validation_images_are_of_the_training_images_kind(images, tmp_path, other):
    """Of other classes or another size, as from a folder of their own, they are refused before anything is written."""
    with pytest.raises(InvalidInput, match=f"^validation images have {next(iter(other))} "):
        train(STRIP, images, replace(images, **other), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_line_trains_either_kind(tmp_path):
    """`--ablation none` trains the network named on whole images, and reports no certificate; without it, one."""
    for number, name in enumerate(("train/cat", "train/dog")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (8, 8), (20 * i, 250 * number, 0)).save(tmp_path / name / f"{i:02d}.png")
    common = ["--dataset", "folder", "--data-root", str(tmp_path), "--epochs", "1", "--batch-size", "4"]
    for ablation, certified in (("none", False), ("columns:2", True)):
        output = tmp_path / ablation
        options = ["--network", "small-cnn", "--ablation", ablation, "--output", str(output)]
        done = CliRunner().invoke(app, [*common, *options])
        assert done.exit_code == 0, done.output
        assert ("(exact)" in done.output) == certified
        assert "validation clean" in done.output
        loaded = load_checkpoint(output / "checkpoint.safetensors")
        assert isinstance(loaded.model, SmoothedClassifier) == certified
        assert isinstance(network_of(loaded.model), SmallCNN)
    refused = CliRunner().invoke(
        app, [*common, "--ablation", "none", "--network", "strip", "--output", str(tmp_path / "other")]
    )
    assert refused.exit_code == 2
    assert "network is strip, which sees parts" in refused.output


def test_a_union_starts_from_its_parts(images, tmp_path):
    """Each part's weights are those of its checkpoint, in order; another number of them or another part is refused."""
    parts = ("columns:2", "rows:2")
    for part in parts:
        train(replace(STRIP, ablation=part, epochs=1), images, images, tmp_path / part)
    starts = [str(tmp_path / part / "checkpoint.safetensors") for part in parts]
    network = {"name": "union", "parts": [STRIP.network, STRIP.network]}
    config = replace(STRIP, ablation="columns:2+rows:2", network=network, start="+".join(starts), epochs=1, lr=0.0)
    model = train(replace(config, weight_decay=0.0), images, images, tmp_path / "union")
    assert isinstance(model, SmoothedClassifier)
    assert isinstance(model.base, UnionNet)
    for own, start in zip(model.base.parts, starts, strict=True):
        saved = load_checkpoint(start).model.base.state_dict()
        assert all(torch.equal(own.state_dict()[name], saved[name]) for name, _ in own.named_parameters())
    x, _ = images.batch(range(4))
    assert load_checkpoint(tmp_path / "union" / "checkpoint.safetensors").smoothed.votes(x).cast.shape[1] == 14 + 14
    for wrong, message in (
        ("+".join(starts[:1] * 3), "3 checkpoints, but columns:2\\+rows:2 has 2 parts"),
        ("+".join(reversed(starts)), "ablation"),
    ):
        with pytest.raises(InvalidInput, match=message):
            train(replace(config, start=wrong), images, images, tmp_path / wrong[-40:].replace("/", "-"))


def test_the_command_line_trains_on_images_of_any_sizes(tmp_path):
    """Brought to one size and read in grey as asked, zoomed into."""
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(("train/cat", "train/dog")):
        (tmp_path / name).mkdir(parents=True)
        for i in range(12):
            size = [int(side) for side in torch.randint(33, 60, (2,), generator=generator)]
            Image.new("RGB", size, (20 * i, 250 * number, 0)).save(tmp_path / name / f"{i:02d}.png")
    options = ["--dataset", "folder", "--data-root", str(tmp_path), "--epochs", "1", "--batch-size", "4"]
    options += [
        "--network",
        "small-cnn",
        "--ablation",
        "columns:8/4",
        "--zoom",
        "0.5",
        "--output",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert "bring all to one size with --image-size" in done.output
    done = CliRunner().invoke(app, [*options, "--image-size", "24x32", "--channels", "1", "--classes", "dog,cat"])
    assert done.exit_code == 0, done.output
    config = load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").config
    assert (config["image_shape"], config["class_names"], config["zoom"]) == ([1, 24, 32], ["dog", "cat"], 0.5)

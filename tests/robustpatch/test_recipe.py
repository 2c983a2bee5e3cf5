"""Recipes: read strictly, trained stage by stage, resumed, and kept as one small checkpoint a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from robustpatch.checkpoints import load_checkpoint, model_from, save_checkpoint
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.recipe import app, follow, load_recipe
from robustpatch.threats.parse import parse_threat
from robustpatch.training.augmentation import augmented
from robustpatch.training.losses import objective, touched_sets
from robustpatch.training.optimizer import optimizer_of
from tests import helpers, toys

TEXT = """
[defaults]
bfloat16 = false
batch_size = 40
network = {name = "strip", widths = [4, 4], hidden = 8}

[[run]]
name = "two"
stages = [{epochs = 2}, {epochs = 1, certificate = 1.0, lr = 0.02}]

[[run]]
name = "blocks"
ablation = "blocks:4"
network = {name = "block", widths = [8]}
optimizer = "adamw"
lr = 0.01
ablations = 20
epochs = 1
vote = "threshold:0.2"
"""


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(120)


def written(folder: Path, text: str = TEXT) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_a_recipe_names_a_defense_of_whole_images(tmp_path):
    text = '[[run]]\nname = "p"\nablation = "none"\ndefense = "patchcleanser:worst=4"\nnetwork = {name = "small-cnn"}'
    ((config,),) = [run.stages for run in load_recipe(written(tmp_path, text))]
    assert (config.ablation, config.defense) == (None, "patchcleanser:worst=4")
    with pytest.raises(InvalidInput, match="defense is 4"):
        load_recipe(written(tmp_path, '[[run]]\nname = "p"\nablation = "none"\ndefense = 4'))


def test_stages_over_runs_over_defaults(tmp_path):
    """A stage's settings win, then its run's, then the defaults; the one-pass network is the default network."""
    two, blocks = load_recipe(written(tmp_path))
    assert [stage.epochs for stage in two.stages] == [2, 1]
    assert [stage.certificate for stage in two.stages] == [0.0, 1.0]
    assert all(stage.batch_size == 40 and stage.ablation == "columns:2" for stage in two.stages)
    assert (blocks.name, blocks.stages[0].ablation, len(blocks.stages)) == ("blocks", "blocks:4", 1)
    (plain,) = load_recipe(written(tmp_path, '[[run]]\nname = "g"\nablation = "2*grid-columns:1"'))
    assert plain.stages[0].network == {"name": "grid"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = [", "cannot be read as TOML"),
        ("", r"without a run; write \[\[run\]\] for each network"),
        ('[runs]\nname = "a"', "runs is no option here; known are defaults, run"),
        ("[[run]]\nepochs = 1", "name is missing"),
        ('[[run]]\nname = "../a"', "name is '../a'"),
        ('[[run]]\nname = "a"\n[[run]]\nname = "a"', "share a name"),
        ('[[run]]\nname = "a"\nepoch = 1', "epoch is no option here; known are ablation"),
        ('[[run]]\nname = "a"\nstart = 3', "start is 3; give a text"),
        ('[[run]]\nname = "a"\nstages = [{start = "b"}]', r"stages\[0\]: start is no option of a stage"),
        ('[[run]]\nname = "a"\nepochs = "1"', r"\[\[run\]\] a: epochs is '1'; give a whole number"),
        ('[[run]]\nname = "a"\nepochs = true', "epochs is True; give a whole number"),
        ('[[run]]\nname = "a"\nstages = []', r"stages is \[\]; the fewest are 1"),
        ('[[run]]\nname = "a"\nepochs = 0', "epochs is 0"),
        ('[[run]]\nname = "a"\nablation = "bands:2"', "ablation is 'bands:2'"),
        ('[[run]]\nname = "a"\nvote = "most"', "voting is 'most'"),
        ('[[run]]\nname = "a"\nbits = 0', "bits is 0; it must be at least 1"),
        ('[[run]]\nname = "a"\nbits = true', "bits is True; give a whole number"),
        ('[[run]]\nname = "a"\noptimizer = "lamb"', "optimizer is 'lamb'; use 'sgd' or 'adamw'"),
    ],
)
def test_refused_recipes(tmp_path, text, message):
    """Each mistake by its name, before anything is trained."""
    with pytest.raises(InvalidInput, match=message):
        load_recipe(written(tmp_path, text))


def test_a_run_is_followed_and_resumed_and_not_repeated(images, tmp_path):
    """Interrupted in its second stage and resumed, a run ends as one left alone; finished, it is left alone; changed,
    it is refused. The checkpoint is in float16 and knows its stages, not where they lay.
    """
    two, _ = load_recipe(written(tmp_path))
    alone = load_checkpoint(follow(two, images, images, tmp_path / "alone"))

    class Stopping:
        def __init__(self, number: int, config: object) -> None:
            self.number = number

        def __enter__(self) -> dict:
            return {"on_step": self.on_step}

        def __exit__(self, *_: object) -> None: ...

        def on_step(self, epoch: int, step: int, loss: float) -> None:
            if self.number == 2 and step == 1:
                raise helpers.Interrupted

    with pytest.raises(helpers.Interrupted):
        follow(two, images, images, tmp_path / "stopped", progress=Stopping)
    path = follow(two, images, images, tmp_path / "stopped")
    resumed = load_checkpoint(path)
    for name, weights in alone.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weights), name
        assert weights.dtype == torch.float32 or not weights.is_floating_point()
        assert torch.equal(weights, weights.half().to(weights.dtype))
    assert [stage["epochs"] for stage in resumed.config["stages"]] == [2, 1]
    assert len(resumed.config["history"]) == 3
    assert str(tmp_path) not in json.dumps(resumed.config)
    before = path.stat().st_mtime_ns
    assert follow(two, images, images, tmp_path / "stopped") == path
    assert path.stat().st_mtime_ns == before
    (other, _) = load_recipe(written(tmp_path, TEXT.replace("epochs = 2", "epochs = 3")))
    with pytest.raises(InvalidInput, match="trained by another recipe"):
        follow(other, images, images, tmp_path / "stopped")


def test_the_rule_to_vote_by_is_kept(images, tmp_path):
    """`vote` goes into the checkpoint and leaves training alone; another rule than the one kept is refused."""
    text = TEXT.replace("stages = [{epochs = 2}, {epochs = 1, certificate = 1.0, lr = 0.02}]", "epochs = 1")
    _, blocks = load_recipe(written(tmp_path, text))
    kept = load_checkpoint(follow(blocks, images, images, tmp_path / "out")).config
    assert (kept["voting"], kept["stages"][0]["voting"]) == ("threshold:0.2", "threshold:0.3")
    for changed in (text.replace("threshold:0.2", "top1"), text.replace('vote = "threshold:0.2"', "")):
        (_, other) = load_recipe(written(tmp_path, changed))
        with pytest.raises(InvalidInput, match="another recipe"):
            follow(other, images, images, tmp_path / "out")


def test_weights_keep_the_digits_asked_for(images, tmp_path):
    """Each is the nearest number of so many binary digits after the first to what was trained; others are refused."""
    text = TEXT.replace("stages = [{epochs = 2}, {epochs = 1, certificate = 1.0, lr = 0.02}]", "epochs = 1")
    _, blocks = load_recipe(written(tmp_path, text))
    kept = load_checkpoint(follow(replace(blocks, bits=3), images, images, tmp_path / "out"))
    assert kept.config["bits"] == 3
    trained = load_checkpoint(tmp_path / "out" / blocks.name / "1" / "checkpoint.safetensors")
    pairs = zip(kept.smoothed.base.parameters(), trained.smoothed.base.parameters(), strict=True)
    some = [
        (float(w), float(v))
        for one, other in pairs
        for w, v in zip(one.detach().flatten(), other.detach().flatten(), strict=True)
    ]
    assert any(w != v for w, v in some)
    for w, v in some[:200]:
        digits = math.frexp(v)[1] - 4  # of the last digit that is kept
        assert w == round(v * 2.0**-digits) * 2.0**digits
    save_checkpoint(tmp_path / "wide.safetensors", trained.model, trained.config, bits=3)  # in float32 as well
    wide = load_checkpoint(tmp_path / "wide.safetensors").smoothed.base.parameters()
    assert all(torch.equal(one, other) for one, other in zip(wide, kept.smoothed.base.parameters(), strict=True))
    with pytest.raises(InvalidInput, match="another recipe"):
        follow(blocks, images, images, tmp_path / "out")


@pytest.mark.parametrize("change", [{"name": "thirds"}, {"class_names": tuple("abcdefghij")}, {"labels": None}])
def test_a_finished_run_is_of_its_images(images, tmp_path, change):
    """Followed on another data set, on classes of other names, or on more images, it is not taken for finished."""
    _, blocks = load_recipe(written(tmp_path))
    follow(blocks, images, images, tmp_path / "out")
    if "labels" in change:
        change = {"labels": images.labels[:80], "_bytes": images._bytes[:80]}
    with pytest.raises(InvalidInput, match=r"blocks\.safetensors was trained on other images"):
        follow(blocks, replace(images, **change), images, tmp_path / "out")


def test_the_shipped_recipes_are_read():
    """Every file of recipes/, and no checkpoint's name twice among them."""
    files = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    names = [run.name for file in files for run in load_recipe(file)]
    assert files
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "side"), [("cifar10", 32), ("cifar10-band", 32), ("cifar10-gpu", 32), ("imagenet-gpu", 64)]
)
def test_the_recipes_of_colour_images_take_steps(name, side):
    """Each stage of each run lowers its own loss on two images, shown alike in each step, in bfloat16 as it is to be
    trained; pretrained weights are not downloaded, and ImageNet's are smaller here.
    """
    for run in load_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.toml"):
        for config in run.stages:
            x, y = toys.images(2, 3, (side, side)), torch.tensor([3, 8])
            about = {
                "image_shape": [3, side, side],
                "class_names": list("abcdefghij"),
                "network": {key: value for key, value in config.network.items() if key != "pretrained"},
            }
            model = toys.seeded(lambda config=config, about=about: model_from({**config.for_checkpoint(), **about}))
            sets = touched_sets(model.ablation, parse_threat(config.patch, (side, side)), side, side)  # type: ignore[attr-defined]
            optimizer = optimizer_of(model.train(), replace(config, lr=min(config.lr, 0.005), momentum=0.0))
            losses = []
            for _ in range(3):
                generator = torch.Generator().manual_seed(0)  # the same views and ablations again
                moved = augmented(x, generator, **config.augmentation)
                loss = objective(model, moved, y, config, None, sets, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            assert losses[-1] < losses[0], (run.name, config)


def test_the_command_line_refuses(tmp_path):
    """An unknown run, and a recipe that is not there: exit status 2, before any data is looked for."""
    recipe = str(written(tmp_path))
    for call, message in (([recipe, "--only", "three"], "three"), ([str(tmp_path / "none.toml")], "none.toml")):
        done = CliRunner().invoke(app, [*call, "--output", str(tmp_path / "out"), "--data-root", str(tmp_path)])
        assert done.exit_code == 2
        assert message in done.output

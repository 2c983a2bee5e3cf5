"""The files of a training: killed between any two writes it ends as one left alone, and no damage stays unseen."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from robustpatch import recipe as recipes
from robustpatch.checkpoints import load_checkpoint
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from tests import helpers

CONFIG = TrainingConfig(
    network={"name": "strip", "widths": [2, 2], "hidden": 4}, epochs=2, batch_size=8, patch="2x2", bfloat16=False
)
FILES = {"state.safetensors", "checkpoint.safetensors", "history.json"}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.noise()


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Path:
    """The run that nobody disturbs."""
    output = tmp_path_factory.mktemp("alone")
    train(CONFIG, images, images, output)
    return output


class Killed(BaseException):
    """Ends a run as a signal does; what it does on its way out is less than an end in order would do."""


def kill_after(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Have the process die once `number` files have got their names; the names so far."""
    named = []

    def counted(real):
        def name_it(part, place, **options):
            real(part, place, **options)
            if not place.endswith(".part"):
                named.append(Path(place).name)
                if len(named) == number:
                    raise Killed

        return name_it

    for each in ("replace", "link"):
        monkeypatch.setattr(os, each, counted(getattr(os, each)))
    return named


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def assert_equal_runs(one: Path, other: Path) -> None:
    """The same files, the same weights, the same history, times apart."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()} == FILES
    first, second = (load_checkpoint(run / "checkpoint.safetensors") for run in (one, other))
    for name, weights in first.model.state_dict().items():
        assert torch.equal(weights, second.model.state_dict()[name]), name
    for run, loaded in ((one, first), (other, second)):
        assert json.loads((run / "history.json").read_text()) == loaded.config["history"]
    assert timeless(first.config["history"]) == timeless(second.config["history"])


@pytest.mark.parametrize("number", range(1, 7))
def test_a_training_that_is_killed_between_two_writes(images, alone, tmp_path, monkeypatch, number):
    """Resumed, it is the run left alone: in the last epoch, too, where there is nothing left to train."""
    with monkeypatch.context() as dying:
        kill_after(dying, number)
        with pytest.raises(Killed):
            train(CONFIG, images, images, tmp_path)
    train(CONFIG, images, images, tmp_path, resume=True)
    assert_equal_runs(alone, tmp_path)


@pytest.mark.parametrize(
    "damage", ["deleted", "emptied", "garbage", "a link to nothing", "flipped", "of the first epoch"]
)
@pytest.mark.parametrize("name", ["checkpoint.safetensors", "history.json"])
def test_what_is_made_of_the_state_is_made_again(images, alone, tmp_path, name, damage):
    """A finished run that is resumed has nothing to train, but all its files."""
    rows: list = []
    for file in FILES:
        (tmp_path / file).write_bytes((alone / file).read_bytes())
    content = (tmp_path / name).read_bytes()
    if damage == "deleted":
        (tmp_path / name).unlink()
    elif damage in ("emptied", "garbage"):
        (tmp_path / name).write_bytes(b"" if damage == "emptied" else b"\xff\0[{")
    elif damage == "a link to nothing":
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("nothing")
    elif damage == "flipped":
        (tmp_path / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    else:
        train(replace(CONFIG, epochs=1), images, images, tmp_path / "first")
        (tmp_path / name).write_bytes((tmp_path / "first" / name).read_bytes())
        for file in FILES:
            (tmp_path / "first" / file).unlink()
        (tmp_path / "first").rmdir()
    train(CONFIG, images, images, tmp_path, resume=True, on_epoch=rows.append)
    assert rows == []
    assert_equal_runs(alone, tmp_path)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.safetensors"])
def test_one_bit_anywhere_is_seen(images, alone, tmp_path, name):
    """In what is resumed from, and in what is used."""
    content = (alone / name).read_bytes()
    read = partial(load_checkpoint, tmp_path / name)
    if name == "state.safetensors":
        read = partial(train, CONFIG, images, images, tmp_path, resume=True)
    for at in range(3, len(content), len(content) // 40):
        (tmp_path / name).write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(InvalidInput, match=r"damaged|no robustpatch configuration"):
            read()
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"damaged|is no safetensors"):
        read()


def test_a_checkpoint_without_its_state_is_not_overwritten(images, alone, tmp_path):
    """Nor is a history; resumed or not, the training is refused by name."""
    (tmp_path / "checkpoint.safetensors").write_bytes(b"of somebody else")
    for resume in (False, True):
        with pytest.raises(InvalidInput, match=r"holds checkpoint\.safetensors, but no state\.safetensors"):
            train(CONFIG, images, images, tmp_path, resume=resume)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == b"of somebody else"


def test_two_trainings_in_one_output(images, tmp_path):
    """The second is refused before it writes; when the first has gone, however it ended, nothing is in the way."""
    tmp_path.joinpath("run").mkdir()
    other = os.open(tmp_path / "run", os.O_RDONLY)  # as another process has it open
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.MonkeyPatch.context() as impatient:
        impatient.setattr("robustpatch.storage.locks._PATIENCE", 0.0)
        with pytest.raises(InvalidInput, match="where another process is at work; wait for its end, or name another"):
            train(CONFIG, images, images, tmp_path / "run")
    assert not list(tmp_path.joinpath("run").iterdir())
    os.close(other)
    train(CONFIG, images, images, tmp_path / "run")


def test_leftovers_of_a_killed_run_are_removed(images, tmp_path):
    """A file that was half written has a name of its own kind; a user's files stay."""
    for name in (".0123abcd.part", "my.part", ".0123abcd.part.txt"):
        (tmp_path / name).write_bytes(b"half")
    train(CONFIG, images, images, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES | {"my.part", ".0123abcd.part.txt"}


@pytest.mark.parametrize("output", ["memory://run", "s3://bucket/run", "", "nothing://run"])
def test_places_where_no_training_is_kept(images, tmp_path, monkeypatch, output):
    """They are refused, and not taken for folders of such names."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="output is"):
        train(CONFIG, images, images, output)
    assert not list(tmp_path.iterdir())


def test_a_refused_training_leaves_no_folder(images, tmp_path):
    """Nor does one whose disk has no room for its state, which is seen before the first epoch."""
    with pytest.raises(InvalidInput, match="batch_size"):
        train(replace(CONFIG, batch_size=99), images, images, tmp_path / "a" / "b")
    with pytest.MonkeyPatch.context() as full:
        full.setattr("robustpatch.storage.store.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(InvalidInput, match="0 MB are free and 4 may be needed; make room"):
            train(CONFIG, images, images, tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


RECIPE = """
[[run]]
name = "a"
ablation = "columns:2"
network = {name = "strip", widths = [2, 2], hidden = 4}
batch_size = 8
patch = "2x2"
bfloat16 = false
stages = [{epochs = 1}, {epochs = 1, lr = 0.01}]
"""


@pytest.mark.parametrize("number", [5, 7])
def test_a_recipe_that_is_killed_between_two_writes(images, tmp_path, monkeypatch, number):
    """Repeated, it keeps the weights of the last epoch of its last stage; a damaged checkpoint is made again."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (run,) = recipes.load_recipe(tmp_path / "recipe.toml")
    alone = recipes.follow(run, images, images, tmp_path / "alone")
    with monkeypatch.context() as dying:
        kill_after(dying, number)
        with pytest.raises(Killed):
            recipes.follow(run, images, images, tmp_path / "killed")
    killed = recipes.follow(run, images, images, tmp_path / "killed")
    expected = load_checkpoint(alone)
    for _ in range(2):
        found = load_checkpoint(killed)
        for name, weights in expected.model.state_dict().items():
            assert torch.equal(weights, found.model.state_dict()[name]), name
        assert timeless(found.config["history"]) == timeless(expected.config["history"])
        killed.write_bytes(killed.read_bytes()[:-3] + b"abc")
        recipes.follow(run, images, images, tmp_path / "killed")

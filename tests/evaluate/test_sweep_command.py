"""python -m evaluate.sweep: what a run leaves behind, choices made on validation images, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluate.cli.command import PACKAGES
from evaluate.sweep import __main__ as command
from tests.evaluate.calls import refused
from tests.evaluate.commands import draw_images
from tests.evaluate.sweeps import CLASSES, SIZE, SMALL, make


def call(*arguments: object):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images, 4 of test and 24 of training a class, and checkpoints for them named as training does."""
    root = tmp_path_factory.mktemp("place")
    draw_images(root / "images", test=4, train=24)
    make(root / "runs" / "narrow" / "checkpoint.safetensors", channels=3)
    make(root / "runs" / "square" / "checkpoint.safetensors", "blocks:3", SMALL, channels=3, seed=4)
    return root


def given(place, *checkpoints):
    named = checkpoints or (place / "runs" / "*" / "checkpoint.safetensors",)
    return [
        *named,
        "--dataset",
        "folder",
        "--data-root",
        place / "images",
        "--patch",
        "2x2",
        "--patch",
        "1x3",
        "--top1",
    ]


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take a second a call, and are looked at elsewhere."""
    monkeypatch.setattr(command, "draw", lambda *_: [])
    return monkeypatch


def test_a_validation_sweep_chooses_for_the_test_sweep(place, tmp_path, undrawn):
    """Rows, table, pictures and summary of both; the test sweep's best is the validation's, and none without it."""
    validation, test = tmp_path / "validation", tmp_path / "test"
    result = call(*given(place), "--split", "validation", "--output", validation)
    assert result.exit_code == 0, result.output
    assert "chosen on these validation images" in result.stdout
    undrawn.undo()
    result = call(*given(place), "--choose-by", validation, "--batch-size", 5, "--output", test)
    assert result.exit_code == 0, result.output
    pictures = ("size-2x2", "size-1x3", "tradeoff-2x2", "tradeoff-1x3", "side")
    files = {f"{name}.{ending}" for name in pictures for ending in ("png", "svg")}
    assert {path.name for path in test.iterdir()} == files | {"records", "run.json", "summary.json", "table.md"}
    assert (test / "table.md").read_text() in result.stdout
    assert "chosen on 8 folder validation images" in result.stdout
    rows = pq.read_table(test / "records").to_pylist()
    assert len(rows) == 2 * 4 * 12
    assert {(row["checkpoint"], row["ablation"]) for row in rows} == {("narrow", "columns:2"), ("square", "blocks:3")}
    chosen, summary = (json.loads((folder / "summary.json").read_text()) for folder in (validation, test))
    assert summary["choices"] == {**chosen["choices"], "on": "8 folder validation images"}
    best = set(summary["choices"]["by_family"]["2x2"].values())
    bold = [line for line in (test / "table.md").read_text().split("1x3 patch")[0].splitlines() if "| **" in line]
    assert {", ".join(line.split(" | ")[2:0:-1]) for line in bold} == best
    for setting in summary["settings"]:
        own = [row for row in rows if (row["checkpoint"], row["voting"]) == (setting["checkpoint"], setting["voting"])]
        right = [row for row in own if row["prediction"] == row["label"]]
        assert (setting["clean"]["hits"], setting["clean"]["total"]) == (len(right), 12)
        for patch in ("2x2", "1x3"):
            for method in ("exact", "margin"):
                assert setting[method][patch]["hits"] == sum(row[f"margin_{method} {patch}"] >= 0 for row in right)
    assert summary["configuration"] == json.loads((test / "run.json").read_text())
    assert {one["name"] for one in summary["configuration"]["checkpoints"]} == {"narrow", "square"}
    assert set(summary["versions"]) == set(PACKAGES)
    assert summary["seconds"] > 0
    assert set(summary["seconds_of_checkpoints"]) == {"narrow", "square"}
    before = {path: path.stat().st_mtime_ns for path in test.glob("records/*/*")}
    undrawn.setattr(command, "draw", lambda *_: [])
    result = call(*given(place), "--batch-size", 5, "--output", test)
    assert result.exit_code == 0, result.output
    assert "no setting is called best" in result.stdout
    assert json.loads((test / "summary.json").read_text())["choices"] is None
    assert before == {path: path.stat().st_mtime_ns for path in test.glob("records/*/*")}
    wrong = call(*given(place), "--choose-by", test)
    refused(wrong, "choose_by is a sweep of test images; name one with --split validation")


def test_what_the_package_ships(tmp_path, monkeypatch):
    """Shipped checkpoints by a pattern, in the folder that is named for the run where none is given."""
    monkeypatch.chdir(tmp_path)
    result = call("mnist-columns2-seed?", "--num-images", 8, "--theta", "0.3", "--guard", "0.001", "--top-k", "1, 3")
    assert result.exit_code == 0, result.output
    (output,) = (tmp_path / "runs").iterdir()
    assert output.name.startswith("sweep-mnist-sample-test-")
    summary = json.loads((output / "summary.json").read_text())
    assert [one["checkpoint"] for one in summary["settings"]] == ["mnist-columns2-seed1", "mnist-columns2-seed2"]
    assert summary["configuration"]["checkpoints"][0]["guard"] == 0.001
    assert summary["configuration"]["top_k"] == [1, 3]
    for setting in summary["settings"]:
        assert setting["clean_top"]["1"] == setting["clean"]
        assert setting["certified_top"]["5x5"]["1"] == setting["exact"]["5x5"]
        assert setting["clean_top"]["3"]["hits"] >= setting["clean"]["hits"] >= 7
    assert "| top 3 clean | top 3 certified |" in result.stdout
    assert [entry["certified"] for entry in summary["paper"]] == [52.83]
    assert "96.66 / 52.83" in result.stdout


WRONG = {
    "checkpoint": (["nowhere.safetensors"], "checkpoint is 'nowhere.safetensors', neither a file"),
    "pattern": (["nowhere/*"], "checkpoint is 'nowhere/*', neither a file"),
    "undefended": (["mnist-undefended"], "checkpoint mnist-undefended.safetensors is undefended"),
    "twice": (["mnist-columns2"], "checkpoints names mnist-columns2 twice; drop one"),
    "split": (["--split", "train"], "split is 'train'; use test or validation"),
    "no validation": (["--split", "validation"], "split is 'validation', but mnist-sample has only"),
    "theta": (["--theta", "0.2,x"], "theta is '0.2,x'; use thresholds separated by commas"),
    "theta range": (["--theta", "1.5"], "theta is 1.5; the threshold must lie strictly"),
    "theta twice": (["--theta", "0.3,0.30"], "votings is threshold:0.3, threshold:0.3: one of them twice; drop one"),
    "no voting": (["--theta", "none"], "votings is empty; name at least one"),
    "top k": (["--top-k", "1,x"], "top_k is '1,x'; use whole numbers separated by commas, 1,3,5, or none"),
    "top all": (["--top-k", "1,10"], "k is 10; among 10 classes take 1 to 9: every class is in the top 10"),
    "top 0": (["--top-k", "0"], "k is 0; among 10 classes take 1 to 9"),
    "top twice": (["--top-k", "3,03"], "top_k is 3, 3: one of them twice; drop one"),
    "patch": (["--patch", "5x5", "--patch", "29x5"], "patch 29x5 (height x width) is larger than the image"),
    "too many": (["--num-images", "501"], "num_images is 501, but mnist-sample has 500 test images; take at most"),
    "none": (["--num-images", "-1"], "num_images is -1; it must be at least 0"),
    "batch size": (["--batch-size", "0"], "batch_size is 0; it must be at least 1"),
    "guard": (["--guard", "2"], "guard is 2.0; it must lie in [0, 1)"),
    "dtype": (["--dtype", "float12"], "dtype is 'float12'; use one of"),
    "device": (["--device", "abacus"], "device is 'abacus', which is not to be had here"),
    "choice": (["--choose-by", "nowhere"], "nowhere holds no sweep"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_ends_with_status_2_and_one_line(name, tmp_path, monkeypatch):
    """Before anything is written: the line names the parameter, the value received and the remedy."""
    arguments, message = WRONG[name]
    refused(call("mnist-columns2", "--num-images", 1, *arguments, "--output", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("undrawn")
def test_checkpoints_and_sweeps_that_do_not_fit(place, tmp_path):
    """Another data set's checkpoint, named last; a choice asked of validation images; another run's folder."""
    refused(
        call(*given(place, place / "runs" / "narrow" / "checkpoint.safetensors", "mnist-columns2")), "was trained for"
    )
    some = given(place, place / "runs" / "narrow" / "checkpoint.safetensors")
    output = ["--output", tmp_path / "out"]
    refused(call(*some, "--split", "validation", "--choose-by", tmp_path), "validation images choose for themselves")
    assert call(*some, "--num-images", 2, *output).exit_code == 0
    refused(call(*some, "--num-images", 3, *output), "holds another run (other num_images")


@pytest.mark.usefixtures("undrawn")
def test_names_that_are_the_same(place, tmp_path):
    """Two files of one name are told apart by their weights."""
    make(tmp_path / "narrow" / "checkpoint.safetensors", channels=3, seed=9)
    files = [folder / "narrow" / "checkpoint.safetensors" for folder in (place / "runs", tmp_path)]
    result = call(*given(place, *files), "--num-images", 1, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "out" / "records").iterdir()}
    assert len(names) == 2
    assert "narrow" in names
    assert all(name.startswith("narrow") for name in names)


def test_a_folder_of_any_sizes(place, tmp_path, undrawn):
    """Its images are brought to the checkpoint's size, and its classes named in the order of the outputs; else the
    refusal says how.
    """
    root, generator = tmp_path / "any", np.random.default_rng(0)
    for k in range(CLASSES):
        (root / "test" / f"class {k}").mkdir(parents=True)
        for i in range(2):
            size = (*generator.integers(SIZE[0] + 1, 30, 2), 3)
            Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(
                root / "test" / f"class {k}" / f"{i}.png"
            )
    arguments = [place / "runs" / "narrow" / "checkpoint.safetensors", "--dataset", "folder", "--data-root", root]
    arguments += ["--patch", "2x2"]
    size = ["--image-size", "x".join(str(side) for side in SIZE)]
    refused(call(*arguments, "--output", tmp_path / "out"), "bring all to one size with --image-size")
    refused(
        call(*arguments, *size, "--output", tmp_path / "out"), "name them in the order of the answers with --classes"
    )
    named = ["--classes", ",".join(f"class {k}" for k in range(CLASSES))]
    result = call(*arguments, *size, *named, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["configuration"]["image_size"] == list(SIZE)

"""--model with files of graphs, libraries' networks and functions of NumPy images: from the file to a verdict."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from evaluate.model.own import images_of
from robustpatch.intake import Preprocessing, Source
from tests.evaluate.calls import call, refused
from tests.robustpatch.intake import files

CODE = """
import numpy as np
from tests.robustpatch.intake.files import scores
def classes(x): return x.mean(axis=(1, 2, 3)) > 0.5
"""
FOLDER = ("--dataset", "folder", "--data-root", "photos", "--channels", 1, "--classes", "day,dusk,night")
QUICK = ("--patch", "2x2", "--attacks", "sparse-rs", "--budget", 40, "--certified-budget", 40, "--gallery", 0)
CLEANSER = ("--defense", "patchcleanser:masks=2,patch=2x2")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Photos of two of three classes, and a network of 8×8 grey images as a graph and as a function."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("day", 180), ("night", 60)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(2):
            noise = np.random.default_rng(number).integers(0, 60, (20, 24 + number), np.uint8)
            Image.fromarray((level + noise).astype(np.uint8)).save(folder / f"{number}.png")
    onnx.save(files.graph(files.small()), tmp_path / "net.onnx")
    (tmp_path / "numbers.py").write_text(CODE)
    torch.save(files.small().state_dict(), tmp_path / "weights.pt")
    return tmp_path


@pytest.mark.parametrize("model", ["net.onnx", "numbers.py:scores"])
def test_from_a_file_to_a_verdict(model, mine):
    """Images in the size that the model says, which is told before the run; certified, attacked, and run again."""
    size = () if model == "net.onnx" else ("--image-size", 8)
    result = call("--model", model, *FOLDER, *size, *QUICK, *CLEANSER, "--output", "out")
    assert result.exit_code == 0, result.output
    summary = json.loads((mine / "out" / "summary.json").read_text())
    assert summary["configuration"]["defense"] == CLEANSER[1]
    if model == "net.onnx":
        assert "model net.onnx, ONNX: seen as 8×8, values in [0, 1] as they are" in result.stderr
        assert list(summary["configuration"]["model_files_sha256"]) == ["net.onnx"]


def test_preprocessing_that_the_user_gives(mine):
    """In place of the file's own: another run, which does not go on with the records of the first."""
    given = ("--mean", 0.5, "--std", "0.25", "--output", "out")
    result = call("--model", "net.onnx", *FOLDER, "--attacks", "none", "--gallery", 0, *given)
    assert result.exit_code == 0, result.output
    assert "mean 0.5, std 0.25 (--mean, --std as given; else" in result.stderr
    other = call("--model", "net.onnx", *FOLDER, "--attacks", "none", "--gallery", 0, "--output", "out")
    assert other.exit_code == 2
    assert "preprocessing" in other.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "weights.pt"), "a state dict, which names no network"),
        (("--model", "weights.pt", "--weights", "weights.pt"), "drop --weights"),
        (("--weights", "weights.pt"), "weights is weights.pt, but checkpoint mnist-columns2 has its own"),
        (("--input-size", 8), "input-size is 8, but checkpoint mnist-columns2 has its own"),
        (("--model", "net.onnx", "--input-size", "8x"), "input_size is '8x'"),
        (("--model", "net.onnx", "--mean", "a", "--std", "1"), "mean is 'a'; give a number for each channel"),
        (("--model", "net.onnx", "--mean", "0.5"), "give both or neither"),
        (("--model", "net.onnx", "--mean", "0.5", "--std", "0"), "std above 0"),
        (("--model", "net.onnx", "--dtype", "bfloat16"), "ONNX files compute in their own; drop --dtype"),
        (
            ("--model", "numbers.py:scores", "--image-size", 8, "--dtype", "bfloat16"),
            "computes with NumPy in its own; drop --dtype",
        ),
        (("--model", "numbers.py:classes", "--image-size", 8), "return scores [B,K]"),
        (("--model", "net.onnx", "--patch", "9x9"), "patch 9x9 (height x width) is larger"),
        (("--model", "numbers.py:scores", "--image-size", 8, "--attacks", "pgd"), "climbs gradients"),
    ],
)
def test_wrong_calls(options, message, mine):
    """One line, before any work."""
    folder = () if "--model" not in options else FOLDER
    refused(call(*folder, *options), message)


def test_names_of_classes_from_the_model(mine):
    """A folder's classes are put in the model's order; other names, and another dataset's order, are refused."""
    from evaluate.cli.options import Options
    from robustpatch.errors import InvalidInput

    def images(names, **options):
        source = Source("net", "ONNX", Preprocessing(size=(8, 8), scaled=9), lambda _: files.small(), names)
        return images_of(Options(model="net", **options), source)

    folder = {"dataset": "folder", "data_root": mine / "photos"}
    found = images(("night", "dusk", "day"), **folder)
    assert (found.class_names, found.image_shape) == (("night", "dusk", "day"), (3, 8, 8))
    assert found.labels.tolist() == [2, 0, 2, 0]
    with pytest.raises(InvalidInput, match=r"model is net, whose own class_names is dark, light.* with --classes"):
        images(("dark", "light"), **folder)
    with pytest.raises(InvalidInput, match="which answers 9, 8, 7"):
        images(tuple("9876543210"))
    assert "taken for the dataset's in order" in images(tuple("abcdefghij")).notes[-1]

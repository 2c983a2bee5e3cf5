"""Training by two processes, as of torchrun, through gloo: equal weights, those of a single one, and resumed."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from robustpatch.checkpoints import load_checkpoint, network_of
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.training import distributed
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from tests.killed import server

PLAIN = TrainingConfig(
    ablation=None, network={"name": "small-cnn", "widths": [4], "hidden": 8}, epochs=2, batch_size=6, bfloat16=False
)
STRIP = TrainingConfig(
    network={"name": "strip", "widths": [4, 4], "hidden": 8}, epochs=2, batch_size=6, crop=1, flip=True, ablations=3
)


def trainings(root: Path, number: int, port: int) -> None:
    """One of two processes: three trainings together, the last of them resumed from the second's first epoch."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    images, validation = (load_images("folder", root, split) for split in ("train", "validation"))

    def keep(row):
        if row["epoch"] == 1:
            shutil.copytree(root / "strip", root / "half")

    kinds: list[tuple[str, TrainingConfig, dict[str, Any]]] = [
        ("plain", PLAIN, {}),
        ("strip", STRIP, {"on_epoch": keep}),
        ("half", STRIP, {"resume": True}),
    ]
    with distributed.joined("cpu") as device:
        for name, config, options in kinds:
            model = train(config, images, validation, root / name, device=device, workers=2, **options)
            save_file(network_of(model).state_dict(), root / f"{name}-{distributed.rank()}")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder of 26 images of 8×8 pixels and two classes."""
    path = tmp_path_factory.mktemp("images")
    pixels = torch.randint(0, 256, (2, 13, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, name in enumerate(("cat", "dog")):
        (path / "train" / name).mkdir(parents=True)
        for i in range(13):
            shown = pixels[number, i] // 2 + 100 * number
            Image.fromarray(shown.numpy()).save(path / "train" / name / f"{i:02d}.png")
    return path


def torchrun(*call: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *call]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stderr


def test_two_processes_train_one_network(root, tmp_path):
    """Without batch statistics or chance, the network of one process up to rounding; else equal in both, and to the
    bit that of a run resumed. The first process alone writes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [server().Process(target=trainings, args=(root, number, port)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    for name in ("plain", "strip", "half"):
        first, second = (load_file(root / f"{name}-{rank}") for rank in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first), name
        kept = load_file(root / name / "checkpoint.safetensors")
        assert all(torch.equal(first[key], kept[key]) for key in kept), name
        assert [row["epoch"] for row in json.loads((root / name / "history.json").read_text())] == [1, 2]
    alone, resumed = (load_file(root / f"{name}-0") for name in ("strip", "half"))
    assert all(torch.equal(alone[key], resumed[key]) for key in alone)
    images, validation = (load_images("folder", root, split) for split in ("train", "validation"))
    single = train(PLAIN, images, validation, tmp_path / "single").state_dict()
    two, untrained = load_file(root / "plain-0"), train(replace(PLAIN, lr=0.0), images, validation, tmp_path / "lr0")
    for key, weights in single.items():
        torch.testing.assert_close(two[key], weights, atol=1e-5, rtol=0)
    assert max(float((two[key] - weights).abs().max()) for key, weights in untrained.state_dict().items()) > 1e-2


@pytest.mark.slow
def test_the_command_line_reports_once(root, tmp_path):
    """One line an epoch from two processes, and no warning."""
    options = ["--dataset", "folder", "--data-root", str(root), "--output", str(tmp_path / "run")]
    options += ["--network", "residual-strip", "--epochs", "2", "--batch-size", "4", "--crop", "1", "--flip"]
    shown = torchrun("-m", "robustpatch.train", *options)
    assert shown.count("validation clean") == 2
    assert load_checkpoint(tmp_path / "run" / "checkpoint.safetensors").config["network"]["name"] == "residual-strip"


def test_what_processes_cannot_share(root, tmp_path, monkeypatch):
    """A batch that does not divide; one GPU for all."""
    images = load_images("folder", root, "train")
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(InvalidInput, match="batch_size is 6, which 4 processes cannot share evenly"):
        train(PLAIN, images, images, tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="device is 'cuda:0', one GPU for all"), distributed.joined("cuda:0"):
        pass


def test_alone_there_is_nothing_to_share():
    """One process: the module itself, values as they are, no waiting; torchrun with one process is that as well."""
    module, value = torch.nn.BatchNorm1d(2), torch.ones(2)
    with distributed.joined("cpu") as device:
        assert device == "cpu"
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.shared(module) is module
    assert distributed.mean(value) is value
    distributed.agree(module)
    distributed.wait()

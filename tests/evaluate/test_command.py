"""python -m evaluate.attack_vs_cert: exit statuses, one clear line for a wrong call, resume after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import evaluate
from evaluate import attack_vs_cert as command
from evaluate.records import read_records
from robustpatch import zoo
from robustpatch.certificate import Certificate
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.zoo import Checkpoint, load_checkpoint, model_from, save_checkpoint
from tests.attacks.toys import Level
from tests.evaluate.planted import WrongCertify

CONFIG = {
    "network": {"name": "strip", "widths": [4, 4], "hidden": 0},
    "ablation": "columns:2",
    "voting": "threshold:0.3",
    "guard": None,
    "encoding": "complement",
    "image_shape": [1, 28, 28],
    "class_names": list("0123456789"),
}
QUICK = [
    "--patch",
    "5x5",
    "--attacks",
    "pgd:1,exhaustive",
    "--steps",
    "1",
    "--budget",
    "150",
    "--certified-budget",
    "300",
    "--num-images",
    "8",
    "--batch-size",
    "4",
]

PROGRESS = re.compile(r"\d+/\d+ \d+:\d\d:\d\d$")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier of untrained features whose bias makes 7 likely: some images certified, most for a wrong label."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_from(CONFIG)
    with torch.no_grad():
        model.base.head[0].weight *= 3
        model.base.head[0].bias[7] += 2
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_checkpoint(path, model, CONFIG)
    return path


def call(*arguments: object):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def timeless(output: Path):
    return [replace(r, attacks=[replace(a, seconds=0.0) for a in r.attacks]) for r in read_records(output)]


def test_an_ordinary_run(checkpoint, tmp_path):
    """Exit 0, the table with the verdict, and a summary from which the run can be repeated."""
    result = call("--checkpoint", checkpoint, *QUICK, "--seed", 3, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    for word in ("clean", "certified (margin)", "certified (exact)", "under pgd-1", "under exhaustive", "HELD"):
        assert word in result.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == "held"
    assert summary["certified_attacked"] == summary["certified_images"] > 0
    assert summary["certified_evaluations"] >= 28 * 3 * summary["certified_images"]
    configuration = summary["configuration"]
    assert configuration["checkpoint_sha256"] == sha256(checkpoint.read_bytes()).hexdigest()
    assert configuration == json.loads((tmp_path / "run.json").read_text())
    expected = {
        "seed": 3,
        "threat": "5x5",
        "dataset": "mnist-sample",
        "num_images": 8,
        "batch_size": 4,
        "dtype": "float32",
        "ablation": "columns:2",
        "voting": "threshold:0.3",
        "guard": 1e-4,
        "device": "cpu",
    }
    assert {key: configuration[key] for key in expected} == expected
    assert "PatchPGD(steps=1" in configuration["attacks"][0]
    assert set(summary["versions"]) == set(command.PACKAGES)
    assert summary["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert summary["threads"] == torch.get_num_threads()
    assert 0 <= summary["measured_deviation"] <= 1e-4
    assert summary["seconds"] > 0


def test_options_reach_the_run(checkpoint, tmp_path):
    """Threshold, guard, precision and patch, as given."""
    result = call(
        "--checkpoint",
        checkpoint,
        "--theta",
        "0.4",
        "--guard",
        "0.03",
        "--dtype",
        "bfloat16",
        "--attacks",
        "none",
        "--patch",
        "2x3,3x2",
        "--num-images",
        2,
        "--ablation",
        "columns:2",
        "--output",
        tmp_path,
    )
    assert result.exit_code == 0, result.output
    configuration = json.loads((tmp_path / "run.json").read_text())
    found = {key: configuration[key] for key in ("voting", "guard", "dtype", "threat", "attacks")}
    assert found == {"voting": "threshold:0.4", "guard": 0.03, "dtype": "bfloat16", "threat": "2x3,3x2", "attacks": []}
    assert "NOT TESTED" in result.stdout
    assert "HELD" not in result.stdout


WRONG = {
    "dataset": (["--dataset", "mnits"], "dataset is 'mnits'; known are mnist-sample"),
    "patch larger": (["--patch", "29x5"], "patch 29x5 (height x width) is larger than the image, 28x28; take at most"),
    "patch text": (["--patch", "5by5"], "patch is '5by5', which is no patch size; use"),
    "patch of nothing": (["--patch", "0x5"], "patch height is 0; it must be"),
    "missing file": (["--checkpoint", "nowhere.safetensors"], "checkpoint is 'nowhere.safetensors', neither a file"),
    "other ablation": (["--ablation", "columns:3"], "ablation is columns:3, but checkpoint toy.safetensors was"),
    "ablation text": (["--ablation", "stripes"], "ablation is 'stripes'; use"),
    "attack": (["--attacks", "pgd,magic"], "'magic' is none; known are"),
    "attack twice": (["--attacks", "pgd:2,pgd:2"], "names one attack twice; drop one"),
    "no restarts": (["--attacks", "pgd:0"], "restarts is 0; it must be at least 1"),
    "device": (["--device", "abacus"], "device is 'abacus', which is not to be had here"),
    "dtype": (["--dtype", "float12"], "dtype is 'float12'; use one of float32, bfloat16"),
    "theta": (["--theta", "1.5"], "theta is 1.5; the threshold must lie strictly between 0 and 1"),
    "theta nan": (["--theta", "nan"], "theta is nan; the threshold must lie"),
    "guard": (["--guard", "-1"], "guard is -1.0; it must lie in [0, 1)"),
    "no images": (["--num-images", "0"], "num_images is 0; it must be at least 1"),
    "too many images": (["--num-images", "501"], "num_images is 501, but mnist-sample has 500 test images; take"),
    "batch size": (["--batch-size", "0"], "batch_size is 0; it must be at least 1"),
    "certified budget": (["--certified-budget", "-1"], "certified_budget is -1; give"),
    "budget": (["--budget", "0"], "0.25, 0; both must be positive"),
    "steps": (["--steps", "0"], "steps is 0; it must be at least 1"),
    "count": (["--patch", "2*5x5", "--attacks", "exhaustive"], "patch is 2*5x5; the exhaustive search"),
    "replay": (["--replay", __file__], "which is no counterexample"),
    "replay nothing": (["--replay", "nowhere"], "replay is nowhere, which is no counterexample"),
}


def refused(result, message):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not PROGRESS.search(line)]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_ends_with_status_2_and_one_line(name, checkpoint, tmp_path):
    """The line names the parameter, the value received and the remedy."""
    arguments, message = WRONG[name]
    given = ["--checkpoint", checkpoint, "--num-images", 1, "--output", tmp_path / "out", *arguments]
    refused(call(*given), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(checkpoint):
    """`--device cuda` on a machine without one."""
    refused(call("--checkpoint", checkpoint, "--device", "cuda"), "device is 'cuda', which is not to be had here")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_checkpoint(keep, checkpoint, tmp_path):
    """Cut off anywhere, the file is named as damaged."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:keep])
    refused(call("--checkpoint", path), "cut.safetensors is damaged or no safetensors file")


def test_an_output_that_holds_another_run(checkpoint, tmp_path):
    """Other options in the same folder are refused, the same ones resume."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", tmp_path]
    assert call(*given).exit_code == 0
    assert call(*given).exit_code == 0
    refused(call(*given, "--seed", 1), "holds another run (other seed); name another output")
    (tmp_path / "mine").write_text("text")
    refused(call(*given[:-1], tmp_path / "mine"), "cannot be written to")


@pytest.mark.parametrize("text", [{}, [], {"threat": [5, 5, 1]}, {"threat": [0, 5, 1]}, None])
def test_a_damaged_counterexample(text, tmp_path):
    """safetensors without, or with half, a claim inside."""
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(1, 4, 4) for name in ("x", "x_adv", "corners")}
    save_file(tensors, tmp_path / "odd", metadata=None if text is None else {"counterexample": json.dumps(text)})
    refused(call("--replay", tmp_path / "odd"), "which is no counterexample")


def test_an_internal_error_has_its_own_status(checkpoint, tmp_path, monkeypatch):
    """A defect is neither a wrong call nor a broken certificate: status 3, with the traceback."""

    def burst(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr(command, "evaluate", burst)
    result = call("--checkpoint", checkpoint, *QUICK, "--output", tmp_path)
    assert result.exit_code == 3
    assert "a defect" in result.stderr
    assert "internal error: please report it" in result.stderr


def _everything(model, x, threat):
    """A proof that certifies whatever comes."""
    votes = model.votes(x)
    sure = torch.ones(len(x), dtype=torch.long)
    close = votes.close.sum(dim=(1, 2))
    return Certificate(model.predict(x), sure > 0, sure, None, threat, "margin", model.guard, close)


def planted(checkpoint) -> Checkpoint:
    """Certifies everything, with a base that looks for bright pixels."""
    loaded = load_checkpoint(checkpoint)
    kind = type("Planted", (WrongCertify,), {"proof": staticmethod(_everything)})
    model = kind(Level(10), loaded.model.ablation, num_classes=10, voting=loaded.model.voting).eval()
    return replace(loaded, model=model)


def test_a_broken_certificate_ends_with_status_1(checkpoint, tmp_path, monkeypatch):
    """Exit 1 comes with a counterexample, which --replay shows again with status 1; of the sound model it is none."""
    monkeypatch.setattr(command, "_model", lambda *_: planted(checkpoint))
    given = ["--checkpoint", checkpoint, "--attacks", "pgd:3", "--steps", 4, "--num-images", 4, "--output", tmp_path]
    result = call(*given)
    assert result.exit_code == 1, result.output
    assert "BROKEN" in result.stdout
    assert "HELD" not in result.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == "broken"
    files = sorted((tmp_path / "counterexamples").iterdir())
    assert files
    assert call(*given).exit_code == 1
    monkeypatch.setattr(command, "load_checkpoint", lambda name: planted(checkpoint))
    for file in files:
        assert f"--replay {file}" in result.stdout
        again = call("--replay", file)
        assert again.exit_code == 1, again.output
        assert "the counterexample stands" in again.stdout
    model = planted(checkpoint).model
    mended = SmoothedClassifier(model.base, model.ablation, num_classes=10, voting=model.voting).eval()
    for healthy in (mended, load_checkpoint(checkpoint).model):  # the bug mended; another model, of another opinion
        sound = replace(planted(checkpoint), model=healthy)
        monkeypatch.setattr(command, "load_checkpoint", lambda name, sound=sound: sound)
        again = call("--replay", files[0])
        assert again.exit_code == 0
        assert "does not stand" in again.stdout
    monkeypatch.setattr(command, "load_checkpoint", lambda name: replace(sound, sha256="other"))
    refused(call("--replay", files[0]), "has changed since")


def test_a_killed_run_resumes(checkpoint, tmp_path):
    """SIGKILL half-way and the same command again: the records of an undisturbed run, times apart."""
    given = ["--checkpoint", str(checkpoint), *QUICK, "--num-images", "24", "--batch-size", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluate.attack_vs_cert", *given, "--output", str(tmp_path / "killed")],
        cwd=Path(evaluate.__file__).parents[1],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list((tmp_path / "killed").glob("records/*.parquet")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {file: file.read_bytes() for file in (tmp_path / "killed" / "records").glob("*.parquet")}
    assert 0 < len(finished) < 12
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert call(*given, "--output", tmp_path / "killed").exit_code == 0
    assert call(*given, "--output", tmp_path / "undisturbed").exit_code == 0
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "undisturbed")
    assert len(timeless(tmp_path / "killed")) == 24
    assert all(file.read_bytes() == before for file, before in finished.items())
    assert any(r.certified for r in timeless(tmp_path / "killed"))


@pytest.mark.skipif("mnist-columns2" not in zoo.names(), reason="the package has no weights yet")
def test_what_the_package_ships(tmp_path):
    """Without a checkpoint named, the shipped one certifies some images and holds."""
    result = call(*QUICK, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == "held"
    assert summary["certified_attacked"] > 0
    assert summary["clean"]["hits"] >= 7

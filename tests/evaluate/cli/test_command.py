"""python -m evaluate.attack_vs_cert: exit statuses, what a run leaves behind, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

import evaluate
from evaluate import attack_vs_cert as command
from evaluate.cli.command import PACKAGES
from evaluate.runs import replay as replaying
from evaluate.runs.records import read_records
from robustpatch.certificates.exact import Certificate
from robustpatch.checkpoints import Checkpoint, load_checkpoint
from robustpatch.classifiers.smoothed import SmoothedClassifier
from tests.attacks.toys import Level
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import WrongCertify

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
    assert "steps=1," in configuration["attacks"][0]
    assert set(summary["versions"]) == set(PACKAGES)
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
    monkeypatch.setattr("evaluate.model.load.load_model", lambda *_, **__: planted(checkpoint))
    given = ["--checkpoint", checkpoint, "--attacks", "pgd:3", "--steps", 4, "--num-images", 4, "--output", tmp_path]
    result = call(*given)
    assert result.exit_code == 1, result.output
    assert "BROKEN" in result.stdout
    assert "HELD" not in result.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["verdict"] == "broken"
    files = sorted((tmp_path / "counterexamples").iterdir())
    assert files
    assert call(*given).exit_code == 1
    monkeypatch.setattr(replaying, "load_checkpoint", lambda name: planted(checkpoint))
    for file in files:
        assert f"robustpatch attack-vs-cert --checkpoint {checkpoint} --replay {file}" in result.stdout
        again = call("--checkpoint", checkpoint, "--replay", file)
        assert again.exit_code == 1, again.output
        assert "the counterexample stands" in again.stdout
    model = planted(checkpoint).model
    mended = SmoothedClassifier(model.base, model.ablation, num_classes=10, voting=model.voting).eval()
    for healthy in (mended, load_checkpoint(checkpoint).model):  # the bug mended; another model, of another opinion
        sound = replace(planted(checkpoint), model=healthy)
        monkeypatch.setattr(replaying, "load_checkpoint", lambda name, sound=sound: sound)
        again = call("--checkpoint", checkpoint, "--replay", files[0])
        assert again.exit_code == 0
        assert "does not stand" in again.stdout
    monkeypatch.setattr(replaying, "load_checkpoint", lambda name: replace(sound, sha256="other"))
    refused(call("--checkpoint", checkpoint, "--replay", files[0]), "has changed since")


def test_a_killed_run_resumes(checkpoint, tmp_path):
    """SIGKILL half-way and the same command again: the records of an undisturbed run, times apart."""
    given = ["--checkpoint", str(checkpoint), *QUICK, "--num-images", "6", "--batch-size", "1"]
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
    assert 0 < len(finished) < 6
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert call(*given, "--output", tmp_path / "killed").exit_code == 0
    assert call(*given, "--output", tmp_path / "undisturbed").exit_code == 0
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "undisturbed")
    assert len(timeless(tmp_path / "killed")) == 6
    assert all(file.read_bytes() == before for file, before in finished.items())
    assert any(r.certified for r in timeless(tmp_path / "killed"))


def test_what_the_package_ships(tmp_path):
    """Without a checkpoint named, the shipped one certifies some images and holds."""
    result = call(*QUICK, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["verdict"] == "held"
    assert summary["certified_attacked"] > 0
    assert summary["clean"]["hits"] >= 7

"""A file to replay is data that anybody may have sent: it names no code, no file and no network to reach."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from evaluate.audit.__main__ import app as audit_app
from evaluate.audit.reproducer import load as load_finding
from evaluate.runs.counterexample import load_counterexample
from evaluate.runs.replay import replay_command
from robustpatch.checkpoints import load_checkpoint
from robustpatch.errors import InvalidInput
from tests.evaluate.calls import call, refused
from tests.forbidding import forbidden

SPY = "import pathlib\npathlib.Path(__file__).with_name('it-ran').write_text('x')\nnet = None\n"
RUN: dict[str, Any] = {"dtype": "float32", "class_names": ["a", "b"], "model": "spy.py:net", "model_sha256": "0" * 64}
CLAIM = {"index": 0, "prediction": 1, "attack": "pgd-1", "threat": [1, 1, 1], "configuration": RUN}


def saved(path, claim: Any = CLAIM, text: str | None = None, **tensors):
    held = {name: torch.zeros(1, 28, 28) for name in ("x", "x_adv")}
    held |= {"corners": torch.zeros(1, 2, dtype=torch.long), **tensors}
    save_file(held, path, metadata={"counterexample": json.dumps(claim) if text is None else text})
    return path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A module beside the file, that leaves a mark where it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spy.py").write_text(SPY)
    return tmp_path


@pytest.mark.parametrize("named", ["spy.py:net", "spy:net", "http.server:test", "os:abort"])
def test_a_file_names_no_code_to_run(named, here):
    """Neither a file beside it nor a module of Python's: the model has to be named by the user."""
    path = saved(here / "sent", {**CLAIM, "configuration": {**RUN, "model": named}})
    with forbidden("spy.py") as attempts:
        refused(call("--replay", path), f"found with the model '{named}'; a file names no code to run: name the model")
    assert attempts == []
    assert not (here / "it-ran").exists()


@pytest.mark.parametrize("named", ["secret.safetensors", "/etc/passwd", "//host/share", "../../x", 5, None, ["a"]])
def test_a_file_names_no_checkpoint_to_read(named, here):
    """But those of the package: any other is named by the user, and told by its SHA-256."""
    path = saved(here / "sent", {**CLAIM, "configuration": {"checkpoint": named, "dtype": "float32"}})
    with forbidden("secret", "passwd") as attempts:
        refused(call("--replay", path), "which is none of the package's; name its file with --checkpoint")
    assert attempts == []


def test_the_checkpoint_named_is_held_against_what_the_file_says(here, checkpoint):
    """By its content; and a model does for none."""
    run = {"checkpoint": "theirs", "checkpoint_sha256": "0" * 64, "dtype": "float32"}
    path = saved(here / "sent", {**CLAIM, "configuration": run})
    refused(call("--checkpoint", checkpoint, "--replay", path), "is not the one that")
    refused(call("--model", "spy.py:net", "--replay", path), "drop --model")
    assert not (here / "it-ran").exists()


def test_the_command_that_is_told_is_one_word_each(tmp_path):
    """Names are quoted: none becomes an option or a command of its own. What the package ships needs none."""
    assert replay_command("out/a b", {"model": "x.py:n; rm -r ~"}).endswith(
        "--model 'x.py:n; rm -r ~' --replay 'out/a b'"
    )
    assert replay_command("f", {"checkpoint": "mine.safetensors"}).endswith("--checkpoint mine.safetensors --replay f")
    assert replay_command("f", {"checkpoint": "mnist-rows2"}).endswith("attack-vs-cert --replay f")


WRONG: dict[str, tuple[Any, dict[str, Any]]] = {
    "threat of text": ({**CLAIM, "threat": ["1", 1, 1]}, {}),
    "threat of two": ({**CLAIM, "threat": [1, 1]}, {}),
    "threat beyond": ({**CLAIM, "threat": [29, 1, 1]}, {}),
    "huge": ({**CLAIM, "prediction": 2**70}, {}),
    "a field too many": ({**CLAIM, "loader": "pickle"}, {}),
    "no field": ({key: value for key, value in CLAIM.items() if key != "attack"}, {}),
    "attack": ({**CLAIM, "attack": None}, {}),
    "configuration": ({**CLAIM, "configuration": []}, {}),
    "list": ([CLAIM], {}),
    "shapes": (CLAIM, {"x_adv": torch.zeros(1, 28, 27)}),
    "integers": (CLAIM, {"x": torch.zeros(1, 28, 28, dtype=torch.long)}),
    "flat": (CLAIM, {"x": torch.zeros(28, 28), "x_adv": torch.zeros(28, 28)}),
    "corners": (CLAIM, {"corners": torch.zeros(2, 2, dtype=torch.long)}),
    "corners of floats": (CLAIM, {"corners": torch.zeros(1, 2)}),
}


@pytest.mark.parametrize("name", WRONG)
def test_fields_of_other_types(name, tmp_path):
    """Refused by the reader, not by what comes after."""
    claim, tensors = WRONG[name]
    with pytest.raises(InvalidInput, match="which is no counterexample"):
        load_counterexample(saved(tmp_path / "sent", claim, **tensors))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5_000, "{", "NaN"])
def test_json_that_is_none(text, tmp_path):
    """Nested too deeply, of too many digits, cut off."""
    with pytest.raises(InvalidInput, match="which is no counterexample"):
        load_counterexample(saved(tmp_path / "sent", text=text))


def test_settings_that_fit_no_model(here, checkpoint):
    """A configuration of other types than a run writes ends in one line as well."""
    sha256 = load_checkpoint(checkpoint).sha256
    for odd in (
        {},
        {"voting": 5},
        {"ablation": None, "defense": 5},
        {"sampling": {"estimation": "many"}},
        {"dtype": []},
    ):
        run = {"checkpoint": "theirs", "checkpoint_sha256": sha256, "dtype": "float32", **odd}
        path = saved(here / "sent", {**CLAIM, "configuration": run})
        refused(call("--checkpoint", checkpoint, "--replay", path), "")
    run |= {"dtype": "float32", "ablation": "columns:2", "voting": "threshold:0.3", "guard": None}
    other = saved(here / "other", {**CLAIM, "configuration": run}, x=torch.zeros(1, 9, 9), x_adv=torch.zeros(1, 9, 9))
    refused(call("--checkpoint", checkpoint, "--replay", other), "with an image of (1, 9, 9)")


NOTE = {
    "check": "companions",
    "severity": "broken certificate",
    "sentence": "it was",
    "kind": "consistency",
    "threat": [1, 1, 1],
    "classes": 3,
}
NOTES: dict[str, Any] = {
    "kind": {**NOTE, "kind": "os.system"},
    "threat": {**NOTE, "threat": "111"},
    "threat beyond": {**NOTE, "threat": [99, 1, 1]},
    "classes": {**NOTE, "classes": 10**9},
    "one class": {**NOTE, "classes": True},
    "check": {**NOTE, "check": "nothing"},
    "sentence": {**NOTE, "sentence": ["a"]},
    "alerts": {**NOTE, "alerts": "yes"},
    "no patch": {**NOTE, "kind": "attack"},
    "no answers": {**NOTE, "kind": "votes"},
    "no history": {**NOTE, "kind": "batches"},
    "list": [NOTE],
}


def finding(path, note: Any, **tensors):
    save_file({"x": torch.zeros(2, 1, 4, 4), **tensors}, path, metadata={"finding": json.dumps(note)})
    return path


@pytest.mark.parametrize("name", NOTES)
def test_a_finding_of_other_types(name, tmp_path):
    """As of a counterexample: the reader refuses it, before a certifier is asked for."""
    with pytest.raises(InvalidInput, match="which is no finding of an audit"):
        load_finding(finding(tmp_path / "sent", NOTES[name]))


def test_findings_are_read_before_the_certifier_is_run(here):
    """A damaged file is refused though a target is named, which is not run for it; a whole one names none to run."""
    for number, note in enumerate([NOTES["kind"], {**NOTE, "target": "spy.py:net", "folder": str(here)}]):
        path = finding(here / f"sent-{number}", note)
        with forbidden("spy.py") as attempts:
            done = CliRunner().invoke(audit_app, ["--replay", str(path)] + ["spy.py:net"] * (number == 0))
        assert (done.exit_code, attempts) == (2, []), done.output
        assert "Traceback" not in done.output
    assert "trust" in done.output
    assert not (here / "it-ran").exists()

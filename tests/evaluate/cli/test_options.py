"""The command line explains itself: groups, a configuration file, completion, an estimate, quiet and plain output."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command

from evaluate import attack_vs_cert
from evaluate.cli.options import Options, read_configuration
from robustpatch.errors import InvalidInput
from robustpatch.storage.toml import as_toml
from tests.evaluate.calls import call, refused

QUICK = ("--attacks", "pgd:1", "--steps", 1, "--budget", 150, "--certified-budget", 300)
TEXT = st.text(st.characters(blacklist_categories=("Cs",), max_codepoint=0xFFFF))


def test_help_has_groups_and_every_option():
    """Each field of `Options` is an option, under one of five headings, with its default."""
    text = call("--help").stdout
    for heading in ("Model", "Images", "Threat and attacks", "Machine", "Output"):
        assert f" {heading} " in text
    for field in fields(Options):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "[default: mnist-columns2]" in text


@given(st.dictionaries(st.sampled_from(["patch", "output", "seed", "theta", "randomized"]), st.none()), st.data())
def test_a_configuration_survives_its_file(tmp_path_factory, names, data):
    """The values written are read again, whatever the text."""
    kinds = {"patch": TEXT, "output": TEXT, "seed": st.integers(0, 2**40), "randomized": st.booleans()}
    values = {name: data.draw(kinds.get(name, st.floats(0, 1, width=32))) for name in names}
    path = tmp_path_factory.mktemp("c") / "run.toml"
    path.write_text(as_toml(values), encoding="utf-8")
    assert read_configuration(path, set(names)) == values


def test_a_configuration_file_is_overridden_by_the_command_line(checkpoint, tmp_path):
    """Its values count as given, lists are joined, dashes do as well; the run's own run.toml repeats it."""
    config = tmp_path / "mine.toml"
    config.write_text(
        f'checkpoint = "{checkpoint}"\nnum-images = 3\nseed = 5\npatch = ["2x2", "1x3"]\nattacks = ["pgd:1", "grey"]\n'
        "certified_budget = 100\nbudget = 100\nsteps = 1\n"
    )
    result = call("--config", config, "--seed", 6, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["num_images"], run["seed"], run["threat"], len(run["attacks"])) == (3, 6, "2x2,1x3", 2)
    again = call("--config", tmp_path / "run" / "run.toml")
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == run
    other = call("--config", tmp_path / "run" / "run.toml", "--output", tmp_path / "other")
    assert other.exit_code == 0, other.output
    assert json.loads((tmp_path / "other" / "run.json").read_text()) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patches = '5x5'", "patches is no option here; known are checkpoint, model"),
        ("config = 'other.toml'", "config is no option here; known are checkpoint"),
        ("patch = ", "which cannot be read as TOML"),
        ("[patch]\nheight = 5", "patch is {'height': 5}; give a text"),
        (None, "which cannot be read as TOML"),
    ],
)
def test_configurations_that_are_none(text, message, tmp_path):
    """One line that names the file, the entry and the remedy."""
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text)
    refused(call("--config", path), message)


def test_a_wrong_value_in_a_configuration(tmp_path):
    """Is refused as on the command line."""
    for text, message in (("'many'", "batch_size is 'many'; give a whole number"), ("true", "batch_size is True")):
        (tmp_path / "mine.toml").write_text(f"batch_size = {text}")
        refused(call("--config", tmp_path / "mine.toml"), f"config {tmp_path / 'mine.toml'}: {message}")


def test_a_dry_run_estimates_and_writes_nothing(checkpoint, tmp_path, monkeypatch):
    """Evaluations of the whole run from a few images of it; no folder appears."""
    monkeypatch.chdir(tmp_path)
    result = call("--checkpoint", checkpoint, *QUICK, "--num-images", 40, "--batch-size", 10, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "40 images: " in result.stdout
    assert "Nothing was written." in result.stdout
    assert list(tmp_path.iterdir()) == []
    expected = int(result.stdout.split(" evaluations")[0].split("and ")[-1].replace(",", ""))
    run = call("--checkpoint", checkpoint, *QUICK, "--num-images", 40, "--batch-size", 10, "--output", tmp_path / "run")
    assert run.exit_code == 0, run.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    spent = summary["certified_evaluations"] + sum(a["evaluations"] for a in summary["attacks"].values())
    assert spent / 2 < expected < 2 * spent


def test_quiet_and_plain(checkpoint, tmp_path):
    """Quiet: the verdict alone. In a log there is no bar, no escape and no wait for the first line."""
    shared = ("--checkpoint", checkpoint, *QUICK, "--num-images", 4, "--batch-size", 2)
    quiet = call(*shared, "--quiet", "--output", tmp_path / "quiet")
    assert quiet.exit_code == 0, quiet.output
    assert quiet.stdout.startswith("HELD: no certified prediction was changed")
    assert len(quiet.stdout.splitlines()) == 1
    assert quiet.stderr == ""
    plain = call(*shared, "--plain", "--output", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    assert "\x1b" not in plain.output
    assert plain.stderr.splitlines()[0] == "0/4 certifying"
    assert plain.stderr.splitlines()[-1] == "4/4 done"


def test_completion():
    """Shells are offered checkpoints, data sets and precisions."""
    params = {param.name: param for param in get_command(attack_vs_cert.app).params}
    context = get_command(attack_vs_cert.app).make_context("evaluate", [], resilient_parsing=True)
    for name, start, word in (
        ("checkpoint", "mnist-r", "mnist-rows2"),
        ("dataset", "fo", "folder"),
        ("dtype", "b", "bfloat16"),
    ):
        offered = [item.value for item in params[name].shell_complete(context, start)]
        assert word in offered
        assert all(one.startswith(start) for one in offered)


def test_unknown_options_are_refused():
    """As `typer` does."""
    assert call("--no-such-option").exit_code == 2
    with pytest.raises(InvalidInput):
        read_configuration(__import__("pathlib").Path("nowhere.toml"), set())

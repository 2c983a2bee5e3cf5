"""The program `robustpatch` has every command line of the project, and completes them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from evaluate.cli.program import ABOUT, COMMANDS, app
from tests import toys

ROOT = Path(__file__).parents[3]


def offered(words: str) -> list[str]:
    """The completions that bash is offered for the last of the words."""
    environment = {"_ROBUSTPATCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    return CliRunner().invoke(app, [], prog_name="robustpatch", env=environment).stdout.split()


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name):
    """By the same text as `python -m` of its module."""
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert f"{name} [OPTIONS]" in result.stdout


def test_all_commands_are_listed():
    """Every module of `evaluate` and `robustpatch` that is a command line is one of the program, but for the one that
    makes a table of the docs.
    """
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f" {name} " in text for name in COMMANDS)
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("evaluate", "robustpatch")
        for path in (ROOT / package).rglob("*.py")
        if "\napp = typer.Typer(" in path.read_text() and path.name != "program.py"
    }
    assert modules == {*COMMANDS.values(), "evaluate.court.board"}


def test_the_shell_is_offered_commands_options_and_values():
    """Names of commands, of a command's options, and of shipped checkpoints."""
    assert offered("robustpatch att") == ["attack-vs-cert"]
    assert set(offered("robustpatch attack-vs-cert --b")) == {"--budget", "--batch-size"}
    assert offered("robustpatch attack-vs-cert --checkpoint mnist-ro") == ["mnist-rows2"]


def test_an_unknown_command_is_a_wrong_call():
    """With exit status 2."""
    assert CliRunner().invoke(app, ["no-such"]).exit_code == 2


@pytest.mark.parametrize("name", ABOUT)
def test_what_is_said_of_a_command_is_what_it_says(name):
    """Word for word, though its module is not imported for it."""
    command = typer.main.get_command(import_module(COMMANDS[name]).app)
    assert " ".join((command.help or "").split()).startswith(ABOUT[name])


def test_help_version_and_commands_need_no_torch():
    """The list of commands, their completion and the version are there at once."""
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom evaluate.cli.program import app\n"
        "said = [CliRunner().invoke(app, [word]) for word in ('--help', '--version')]\n"
        "assert 'leaderboard' in said[0].stdout and said[1].stdout.startswith('robustpatch '), said\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_proof_is_verified_as_by_its_own_module(tmp_path):
    """With its exit status; and a file that is none, and an action that is none, are wrong calls."""
    model = toys.smoothed()
    model.certify(toys.images(2), "2x2").save(tmp_path / "proof.npz")
    for arguments, status, said in (
        (("verify", str(tmp_path / "proof.npz")), 0, "every claim follows from the votes"),
        (("verify", str(tmp_path / "none.npz")), 2, ""),
        (("prove", str(tmp_path / "proof.npz")), 2, ""),
    ):
        result = CliRunner().invoke(app, ["proof", *arguments])
        assert result.exit_code == status, result.output
        assert said in result.stdout

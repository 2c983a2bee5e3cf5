"""The program `robustpatch` has every command line of the project, and completes them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluate.cli.program import COMMANDS, app

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
    """Every module of `evaluate` and `robustpatch` that is a command line is one of the program."""
    text = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f" {name} " in text for name in COMMANDS)
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in ("evaluate", "robustpatch")
        for path in (ROOT / package).rglob("*.py")
        if "\napp = typer.Typer(" in path.read_text() and path.name != "program.py"
    }
    assert modules == set(COMMANDS.values())


def test_the_shell_is_offered_commands_options_and_values():
    """Names of commands, of a command's options, and of shipped checkpoints."""
    assert offered("robustpatch att") == ["attack-vs-cert"]
    assert set(offered("robustpatch attack-vs-cert --b")) == {"--budget", "--batch-size"}
    assert offered("robustpatch attack-vs-cert --checkpoint mnist-ro") == ["mnist-rows2"]


def test_an_unknown_command_is_a_wrong_call():
    """With exit status 2."""
    assert CliRunner().invoke(app, ["no-such"]).exit_code == 2

"""An option that several commands take is one option: declared once, with one help text, under one heading."""

from __future__ import annotations

from collections import defaultdict
from importlib import import_module
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from evaluate.cli.program import COMMANDS, app

OWN = {
    # option: why each command has one of its own
    "help": "typer's",
    "checkpoints": "a sweep takes patterns, too",
    "ablation": "an evaluation refuses other checkpoints by it, a training trains for it",
    "batch_size": "how many images a step of a training learns from is no matter of memory",
    "classes": "an audit knows of no names: it takes the number of classes",
    "model": "of a finished run it is one that its records name already",
    "only": "a training takes the name of weights, a recipe and a board names of rows",
    "output": "each command says what it writes there",
    "replay": "a counterexample may lie in a store, an audit's finding is a file",
    "run": "a report is of a run that need not be finished",
    "theta": "a sweep takes several",
    "top_k": "a sweep takes several",
}


def parameters() -> dict[str, dict[str, Any]]:
    """Name of an option -> command -> click's parameter."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for command, module in COMMANDS.items():
        for one in get_command(import_module(module).app).params:
            found[one.name][command] = one
    return found


def test_options_of_one_name_are_one_declaration():
    """What a command alone adds is the default, and whether the option may be given several times."""
    shared = {name: commands for name, commands in parameters().items() if len(commands) > 1}
    assert {"device", "seed", "patch", "dtype", "guard", "num_images", "data_root", "budget"} <= set(shared)
    differing = {
        name: {one.help for one in commands.values()}
        for name, commands in shared.items()
        if len({(one.help, one.rich_help_panel, str(one.opts)) for one in commands.values()}) > 1
    }
    assert set(differing) == set(OWN) - {"help"}, differing


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_says_what_it_is(command):
    for name, commands in parameters().items():
        if command in commands and name != "help":
            assert commands[command].help, name


@pytest.mark.parametrize("name", ["dtype", "device", "only", "patch", "guard", "num_images", "budget", "seed"])
def test_commands_refuse_a_wrong_value_in_the_same_words(name):
    """None of these is right for any command; those that would read files first are given none that is needed."""
    wrong = {"dtype": "float12", "num_images": "-1", "budget": "0", "guard": "x", "seed": "x", "patch": "9y"}
    needed = {"sweep": ["mnist-columns2"], "audit": ["m:x"], "leaderboard": ["mnist"], "recipe": ["recipes/mnist.toml"]}
    needed |= {"verify": ["case.zip"], "audit": ["--court"] if name == "only" else ["m:x"]}
    said = set()
    for command in parameters()[name]:
        if command in ("train", "recipe"):
            continue  # where the images would be read before
        words = [command, *needed.get(command, []), "--" + name.replace("_", "-"), wrong.get(name, "nonsense")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2, done.output
        said.add(
            done.stderr.strip().partition("; known")[0].partition("the board has")[0].partition("the docket has")[0]
        )
    assert len(said) == 1, said

"""The program `robustpatch`: every command line of the project, with completion of the shell."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "attack-vs-cert": "evaluate.attack_vs_cert",
    "report": "evaluate.report.__main__",
    "audit": "evaluate.audit.__main__",
    "sweep": "evaluate.sweep.__main__",
    "compare": "evaluate.compare",
    "gate": "evaluate.gate.__main__",
    "bundle": "evaluate.bundle.__main__",
    "verify": "evaluate.verify",
    "selftest": "evaluate.selftest.__main__",
    "leaderboard": "evaluate.leaderboard.__main__",
    "learning": "evaluate.learning",
    "curve": "evaluate.curve",
    "train": "robustpatch.train",
    "recipe": "robustpatch.recipe",
}


class _Modules(TyperGroup):
    """Commands of modules that are imported when asked for: one need not wait for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command


app = typer.Typer(
    cls=_Modules,
    name="robustpatch",
    help="Proofs and attacks on image classifiers, held against each other.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def _main() -> None:
    pass

"""The program `robustpatch`: every command line of the project, with completion of the shell."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "attack-vs-cert": "evaluate.attack_vs_cert",
    "report": "evaluate.report.__main__",
    "audit": "evaluate.audit.__main__",
    "sweep": "evaluate.sweep.__main__",
    "compare": "evaluate.compare",
    "leaderboard": "evaluate.leaderboard.__main__",
    "learning": "evaluate.learning",
    "curve": "evaluate.curve",
    "train": "robustpatch.train",
    "recipe": "robustpatch.recipe",
}


class _Modules(TyperGroup):
    """Commands of modules that are imported when one is asked for. A list of all of them imports none: it shows their
    names and their help, which is read from their files.
    """

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=_help_of(COMMANDS[cmd_name]))
        command = typer.main.get_command(import_module(COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._as_list():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        with self._as_list():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _as_list(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False


def _help_of(module: str) -> str:
    """The docstring of the function `main` in the file of a module that need not be imported."""
    file = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    functions = (one for one in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(one, ast.FunctionDef))
    return next(ast.get_docstring(one) or "" for one in functions if one.name == "main")


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

"""The program `robustpatch`: every command line of the project, with completion of the shell."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

_EVALUATE = __name__.removesuffix(".cli.program")
COMMANDS = {
    "attack-vs-cert": f"{_EVALUATE}.attack_vs_cert",
    "report": f"{_EVALUATE}.report.__main__",
    "audit": f"{_EVALUATE}.audit.__main__",
    "sweep": f"{_EVALUATE}.sweep.__main__",
    "compare": f"{_EVALUATE}.compare",
    "gate": f"{_EVALUATE}.gate.__main__",
    "bundle": f"{_EVALUATE}.bundle.__main__",
    "verify": f"{_EVALUATE}.verify",
    "selftest": f"{_EVALUATE}.selftest.__main__",
    "leaderboard": f"{_EVALUATE}.leaderboard.__main__",
    "boards": f"{_EVALUATE}.boards",
    "learning": f"{_EVALUATE}.learning",
    "curve": f"{_EVALUATE}.curve",
    "train": "robustpatch.train",
    "recipe": "robustpatch.recipe",
}


ABOUT = {  # what `--help` and the shell say of a command without importing it: how its own help begins
    "attack-vs-cert": (
        "Report certified beside empirical accuracy, and whether any attack changed a certified prediction."
    ),
    "report": "Write report.html, report.md and report.json from a run's records.",
    "audit": (
        "Attack what is certified, hold predict and certify against each other, and dictate votes through the factory."
    ),
    "sweep": (
        "Certify all images with each checkpoint under each voting rule, against each patch and squares of every side."
    ),
    "compare": "Put runs side by side, each against the first, image for image.",
    "gate": "Hold runs against the rules of a file, line by line.",
    "bundle": (
        "Write report, records, and the evidence of every certificate of a run, with the SHA-256 of all that they rest "
        "on."
    ),
    "verify": "Check that every claim of a safety case follows from its evidence.",
    "selftest": "Test votes, kernels, certifiers and speeds on this machine, in about a minute.",
    "leaderboard": "Certify, attack and time every defense of a board; write leaderboard.html, .md, .parquet and .png.",
    "boards": "Put the rows of finished boards on one page, to sort and filter.",
    "learning": "Draw clean and certified accuracy on validation images against epochs.",
    "curve": "Draw accuracy under attack against the evaluations spent, of one run for each budget.",
    "train": "Train a base classifier on ablated images, or an undefended one (--ablation none) on whole images.",
    "recipe": "Train every network of a recipe",
}


class _Unread(TyperCommand):
    """A command by its name and a line about it; its module is imported when it is called, or asked for options."""

    def read(self) -> Any:
        command = typer.main.get_command(import_module(COMMANDS[str(self.name)]).app)
        command.name = self.name
        return command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.read().make_context(info_name, args, parent=parent, **extra)


class _Modules(TyperGroup):
    """Commands of modules that are imported when asked for: one need not wait for the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        command = _Unread(cmd_name, help=ABOUT.get(cmd_name))
        return command if cmd_name in ABOUT else command.read()


app = typer.Typer(
    cls=_Modules,
    name="robustpatch",
    help="Proofs and attacks on image classifiers, held against each other.",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"robustpatch {version('robustpatch')}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    app()

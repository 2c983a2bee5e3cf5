"""robustpatch proof verify FILE: what `python -m robustpatch.proof` does, beside the other commands."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from robustpatch.cli.command_line import Command
from robustpatch.proof.__main__ import main as run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
def main(
    action: Annotated[Literal["verify"], typer.Argument(help="What to do with the file.")],
    file: Annotated[str, typer.Argument(help="A certificate that was saved, or a safety case of robustpatch bundle.")],
) -> None:
    """Check a certificate on disk, or a safety case, by numpy alone.

    Exit status 0: every claim follows from its evidence. 1: one does not. 2: wrong call, or the file is no proof.
    """
    raise typer.Exit(run([action, file]))

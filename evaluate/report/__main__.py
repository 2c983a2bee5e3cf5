"""python -m evaluate.report RUN: the report of a run again, or of one that is not finished."""

from __future__ import annotations

from typing import Annotated

import typer

from evaluate.cli.command import HELD, takes
from evaluate.report.write import write_report
from evaluate.runs.output import place_of, writing
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
@takes
def main(
    run: Annotated[str, typer.Argument(help="An --output of robustpatch attack-vs-cert, finished or not.")],
    output: Annotated[str | None, typer.Option(help="Folder of the report. Default: the run's.")] = None,
) -> int:
    """Write report.html, report.md and report.json from a run's records.

    Exit status 0: written, whatever the verdict in it. 2: wrong call. 3: internal error.
    """

    place_of(run)  # refused before anything is made
    with writing(run if output is None else output) as store:
        TextConsole().print(f"report in {write_report(run, store)}", soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()

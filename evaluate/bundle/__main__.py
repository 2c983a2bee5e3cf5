"""python -m evaluate.bundle RUN: a safety case, one archive with the evidence of every certificate of a run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from evaluate.bundle.make import bundle
from evaluate.cli.command import HELD, showing, takes
from evaluate.runs.completed_run import read_run
from evaluate.runs.output import folder_of, writing
from evaluate.runs.reloading import options_of, stored_options
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.data.images import DataRoot
from robustpatch.errors import InvalidInput
from robustpatch.proof.bundle import checked, told
from robustpatch.storage.npz import read_members

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_MOST_BYTES = 2**30


@app.command(cls=Command)
@takes
def main(
    errors: Console,
    run: Annotated[str, typer.Argument(help="An --output of robustpatch attack-vs-cert.")],
    output: Annotated[str, typer.Option(help="The archive, NAME.zip.")] = "bundle.zip",
    model: Annotated[shared.OwnModel | None, "none: the run's checkpoint"] = None,
    data_root: Annotated[DataRoot | None, "the run's"] = None,
) -> int:
    """Write report, records, and the evidence of every certificate of a run, with the SHA-256 of all that they rest on.

    Exit status 0: written; certificates without evidence are named. 2: wrong call. 3: internal error.
    """
    if not output.endswith(".zip"):
        raise InvalidInput(f"output is {output}; let it end in .zip")
    with writing(folder_of(output)) as store:
        found = read_run(run)
        options = options_of(f"run {run}", stored_options(found), model, data_root)
        with showing(errors, len(found.records)) as on_progress:
            content = bundle(found, options, lambda n: on_progress(n, "keeping evidence"))
        lines, status = told(checked(read_members(content, _MOST_BYTES)))
        assert status == 0, lines
        store.write(output.rpartition("/")[2], content)
    console = TextConsole()
    for line in [*lines, f"{len(content):,} bytes in {output}; robustpatch verify {output}"]:
        console.print(line, soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()

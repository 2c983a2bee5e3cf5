"""python -m evaluate.gate GATE.toml RUN...: hold runs against floors and a stored run; pass or fail, line by line."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console

from evaluate.attack_vs_cert import carry_out
from evaluate.cli.command import BROKEN, HELD, showing, takes
from evaluate.gate.answers import Answers
from evaluate.gate.convert import CONVERSIONS, certify_again
from evaluate.gate.documents import junit, sarif, summary
from evaluate.gate.judge import Line, judge
from evaluate.gate.rules import Conversion, Gate, read_gate
from evaluate.runs.completed_run import CompletedRun, read_run
from evaluate.runs.output import writing
from evaluate.runs.reloading import options_of, stored_options
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.text import some_of
from robustpatch.errors import InvalidInput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
@takes
def main(
    errors: Console,
    rules: Annotated[str, typer.Argument(help="A TOML file: [[floor]], [baseline], [[convert]] and [run].")],
    runs: Annotated[shared.Runs | None, "as [run] says"] = None,
    output: Annotated[str | None, typer.Option(help="Folder for gate.xml, gate.sarif and gate.md.")] = None,
) -> int:
    """Hold runs against the rules of a file, line by line.

    Exit status 0: every rule passed. 1: some rule failed. 2: wrong call. 3: internal error.
    """
    gate = read_gate(rules)
    stored = None if gate.baseline is None else Answers.of(read_run(gate.baseline.run))
    with nullcontext() if output is None else writing(output, alone=True) as store:
        found = [read_run(run) for run in runs or [_made(gate, errors)]]
        lines = judge(gate, [Answers.of(run) for run in found], stored)
        for conversion in gate.conversions:
            lines += [_converted(conversion, run, gate, errors, len(found) > 1) for run in found]
        if store is not None:
            store.write("gate.xml", junit(gate.title, lines))
            store.write("gate.sarif", sarif(gate.title, lines, rules))
            store.write("gate.md", summary(gate.title, lines).encode())
    console, failed = TextConsole(), sum(not line.passed for line in lines)
    for line in lines:
        console.print(f"{line}", style=None if line.passed else "bold red", soft_wrap=True)
    verdict = f"{gate.title}: {failed} of {len(lines)} rules failed" if failed else f"{gate.title}: all rules passed"
    console.print(verdict, style="bold red" if failed else "bold green", soft_wrap=True)
    return BROKEN if failed else HELD


def _made(gate: Gate, errors: Console) -> str:
    """The folder of the run that [run] asks for, which is made, or taken up where it was left."""
    if gate.run is None:
        raise InvalidInput("runs are none, and the rules have no [run]; name a folder, or say there what to run")
    if gate.run.dry_run or gate.run.replay:
        raise InvalidInput("[run] has dry_run or replay, which make no run; leave them out")
    options = replace(gate.run, output=gate.run.output or "runs/gate", quiet=True)
    carry_out(options, errors)  # a broken certificate is a line of the gate
    return str(options.output)


def _converted(rule: Conversion, run: CompletedRun, gate: Gate, errors: Console, several: bool) -> Line:
    name = f"certificates in {rule.to}" + f", {run.claim['threat']}" * several
    wanted = f"wanted: at most {rule.lost:g}% lost"
    with showing(errors, len(run.records)) as on_progress:
        try:
            own = (
                None if gate.run is None else gate.run.model
            )  # the rules are the user's own, a run's folder need not be
            options = options_of(f"run {run.output}", stored_options(run), own)
            convert = CONVERSIONS[rule.to]
            found = certify_again(run, options, convert, lambda n: on_progress(n, f"certifying in {rule.to}"))
        except InvalidInput as error:
            return Line("convert", name, False, "none", wanted, str(error))
    lost = f": images {some_of(found.lost)}" if found.lost else ""
    text = (
        f"{len(found.lost)} of {found.before} lost ({100 * found.share:.2f}%), {len(found.gained)} gained, "
        f"{len(found.changed)} predictions changed"
    )
    return Line("convert", name, 100 * found.share <= rule.lost + 1e-9, text + lost, wanted)


if __name__ == "__main__":
    app()

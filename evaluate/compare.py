"""python -m evaluate.compare RUN RUN...: runs on the same images side by side, image for image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from scipy.stats import binomtest

from evaluate.cli.command import HELD, takes
from evaluate.report.page import render
from evaluate.results.metrics import Share, as_json
from evaluate.results.table import Column, Table
from evaluate.runs.completed_run import CompletedRun, read_run
from evaluate.runs.output import writing
from evaluate.runs.records import Record
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.text import markdown as plain
from robustpatch.errors import InvalidInput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


MEASURES: dict[str, Callable[[Record], bool | None]] = {  # what is asked of an image; None: no answer
    "clean": lambda record: record.correct,
    "certified (margin)": lambda r: None if r.certified_margin is None else r.certified_margin and r.correct,
    "certified (exact)": lambda r: None if r.certified_exact is None else r.certified_exact and r.correct,
    "under all attacks": lambda r: r.correct and not r.broken,
}


@dataclass(frozen=True)
class Paired:
    """Two runs' answers to one question on the same images: `only_first` and `only_second` images have it in one run
    alone. `p`: of so uneven a split or a more uneven one if both were equally likely (McNemar's exact test, two-sided);
    `adjusted` for all tests of the comparison together (Holm).
    """

    measure: str
    first: str
    second: str
    only_first: int
    only_second: int
    p: float
    adjusted: float


@dataclass(frozen=True)
class Comparison:
    """Shares of each run, by measure (None where it has no answer), and each later run against the first; `remarks` say
    of which runs other things were asked, a sentence each.
    """

    title: str
    runs: list[str]
    shares: dict[str, list[Share | None]]
    pairs: list[Paired]
    remarks: list[str]


PAIRS: tuple[Column[Paired], ...] = (
    Column("", lambda pair: pair.measure, words=True),
    Column("against", lambda pair: f"{pair.first} / {pair.second}", words=True),
    Column("only first", lambda pair: f"{pair.only_first}"),
    Column("only second", lambda pair: f"{pair.only_second}"),
    Column("p", lambda pair: f"{pair.p:.2g}"),
    Column("adjusted", lambda pair: f"{pair.adjusted:.2g}"),
)


def compare(runs: Sequence[CompletedRun]) -> Comparison:
    """Hold runs on the same images against each other. Raises `InvalidInput` where they are not, or fewer than two."""
    if len(runs) < 2:
        raise InvalidInput(f"runs is {len(runs)} run; name at least two --outputs of robustpatch attack-vs-cert")
    first = runs[0]
    for run in runs[1:]:
        for key in ("images_sha256", "num_images"):
            if run.claim[key] != first.claim[key]:
                raise InvalidInput(
                    f"run {run.output} has another {key} than {first.output}; images are compared one by one, so name "
                    "runs on the same ones"
                )
    names = _names(runs)
    shares: dict[str, list[Share | None]] = {}
    found: list[Paired] = []
    for measure in MEASURES:
        answers = [_answers(run, measure) for run in runs]
        if all(row is None for row in answers):
            continue
        shares[measure] = [None if row is None else Share(sum(row), len(row)) for row in answers]
        for name, row in zip(names[1:], answers[1:], strict=True):
            if answers[0] is not None and row is not None:
                found.append(_paired(measure, names[0], name, answers[0], row))
    threats = dict.fromkeys(str(run.claim["threat"]) for run in runs)
    title = f"{len(first.records)} {first.claim['dataset']} test images, {' / '.join(threats)} patch"
    remarks = [
        f"{names[0]} and {name} were run with another {', '.join(other).replace('_', ' ')}; a difference "
        f"{'in what is certified or ' * bool({*other} & {*_CERTIFIED})}under attack may come from that alone"
        for name, run in zip(names[1:], runs[1:], strict=True)
        if (other := _asked_otherwise(first, run))
    ]
    return Comparison(title, names, shares, _holm(found), remarks)


_CERTIFIED, _ATTACKED = ("threat", "top_k"), ("attacks", "certified_budget")  # keys of run.json


def _asked_otherwise(first: CompletedRun, second: CompletedRun) -> list[str]:
    """The keys under which two runs say that other things were asked of their models."""
    keys = _CERTIFIED + (_ATTACKED if first.claim.get("attacks") and second.claim.get("attacks") else ())
    return [key for key in keys if first.claim.get(key) != second.claim.get(key)]


def _answers(run: CompletedRun, measure: str) -> list[bool] | None:
    """The answer of each image, None where the run has none."""
    if measure == "under all attacks" and not run.claim["attacks"]:
        return None
    answers = [MEASURES[measure](record) for record in run.records]
    return None if None in answers else [bool(answer) for answer in answers]


def _paired(measure: str, first: str, second: str, ours: Sequence[bool], theirs: Sequence[bool]) -> Paired:
    pairs = list(zip(ours, theirs, strict=True))
    only = pairs.count((True, False)), pairs.count((False, True))
    p = 1.0 if not any(only) else float(binomtest(only[0], sum(only)).pvalue)
    return Paired(measure, first, second, *only, p, p)


def _holm(pairs: list[Paired]) -> list[Paired]:
    """Holm's adjustment: the i-th smallest of m is multiplied by m - i, and none is below a smaller one's."""
    least, adjusted = 0.0, {}
    for rank, pair in enumerate(sorted(pairs, key=lambda pair: pair.p)):
        least = max(least, min(1.0, (len(pairs) - rank) * pair.p))
        adjusted[id(pair)] = least
    return [replace(pair, adjusted=adjusted[id(pair)]) for pair in pairs]


def _names(runs: Sequence[CompletedRun]) -> list[str]:
    """Names that tell the runs apart: the models, where they do, else the folders."""
    for names in ([run.model for run in runs], [Path(run.output).name for run in runs]):
        if len(set(names)) == len(names):
            return names
    return [run.output for run in runs]


def markdown(found: Comparison) -> str:
    """The comparison as Markdown: shares with 95% intervals, then the paired tests."""
    note = "Images that one run has and the other has not; McNemar's exact test, and Holm's adjustment for all."
    remarks = [plain(remark) + "." for remark in found.remarks]
    tables = [shares_table(found).markdown(), *remarks, note, Table.of(PAIRS, found.pairs).markdown()]
    parts = [f"# {plain(found.title)}", *tables]
    return "\n\n".join(parts) + "\n"


def shares_table(found: Comparison) -> Table:
    """A line for each measure, a column for each run."""
    rows = [(measure, *map(_text, row)) for measure, row in found.shares.items()]
    return Table(("", *found.runs), (True, *[False] * len(found.runs)), rows)


def page(found: Comparison, outputs: Sequence[str]) -> str:
    """The comparison as one HTML page that needs nothing but itself; `outputs` are what the runs were named by."""
    return render(
        "compare.html.j2",
        found=found,
        outputs=outputs,
        pairs=Table.of(PAIRS, found.pairs).html("Images that only one run has"),
    )


def _text(share: Share | None) -> str:
    if share is None:
        return "–"
    low, high = share.interval
    return f"{100 * share.value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


@app.command(cls=Command)
@takes
def main(
    runs: shared.Runs,
    output: Annotated[str | None, typer.Option(help="Folder for compare.md, compare.html and compare.json.")] = None,
) -> int:
    """Put runs side by side, each against the first, image for image.

    Exit status 0: done. 2: wrong call. 3: internal error.
    """
    with nullcontext() if output is None else writing(output, alone=True) as store:
        found = compare([read_run(run) for run in runs])
        if store is not None:
            content = {"md": markdown(found), "html": page(found, runs), "json": json.dumps(as_json(found), indent=1)}
            for ending, text in content.items():
                store.write(f"compare.{ending}", text.encode())
    console = TextConsole()
    console.print(shares_table(found).terminal(found.title))
    for remark in found.remarks:
        console.print(remark, soft_wrap=True)
    console.print(Table.of(PAIRS, found.pairs).terminal("image for image"))
    if output is not None:
        console.print(f"compare.html, .md and .json in {output}", soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()

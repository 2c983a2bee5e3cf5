"""The court's page: a table of all trials, then each with its claim, its counterexample and how to see it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.audit.finding import Finding
from evaluate.audit.reproducer import again
from evaluate.court.drawing import Drawing
from evaluate.court.entry import Entry
from evaluate.court.trial import Trial
from evaluate.report.page import render
from evaluate.results.table import Column, Table
from robustpatch.cli.text import code_block
from robustpatch.cli.text import markdown as plain

HEAD = (
    "Certifiers of the literature, written anew from papers and published code, each tried in the form in which it was "
    "published and, where that is unsound, repaired. Broken: a certified prediction was seen to change under a patch "
    "of the threat; the file shows it again. Held: no certificate was broken, which proves nothing."
)


@dataclass(frozen=True)
class Case:
    """An entry with the trials of its forms, the drawing of its counterexample, and the files that show it again."""

    entry: Entry
    trials: tuple[Trial, ...]
    drawing: Drawing | None = None
    files: tuple[Path, ...] = ()

    @property
    def printed(self) -> Trial:
        return self.trials[0]

    @property
    def repaired(self) -> Trial | None:
        return self.trials[1] if len(self.trials) > 1 else None

    @property
    def commands(self) -> list[str]:
        forms = [trial.form for trial in self.trials if shown(trial) is not None]
        return [again(path, {"factory": self.entry.named(form)}) for path, form in zip(self.files, forms, strict=False)]

    @property
    def alarm(self) -> bool:
        """Tells whether a form was broken that has no known fault."""
        last = self.trials[-1]
        return last.verdict == "broken" and (len(self.trials) > 1 or not self.entry.fault)


def shown(trial: Trial) -> Finding | None:
    """The finding that a trial is shown by: the smallest, else the audit's."""
    return trial.smallest or trial.found


def _verdict(trial: Trial | None) -> str:
    return "–" if trial is None else trial.verdict


def _size(case: Case) -> str:
    finding = shown(case.printed)
    if finding is None or finding.where is None:
        return "–"
    number = 0 if case.drawing is None else len(case.drawing.views)
    views = f", {number} view{'s' * (number > 1)}" if number else ""
    return f"{finding.where[0]} on {finding.where[1]}, {finding.note['classes']} classes{views}"


COLUMNS: tuple[Column[Case], ...] = (
    Column("certifier", lambda case: case.entry.title, words=True),
    Column("as published", lambda case: _verdict(case.printed), words=True),
    Column("by", lambda case: one.check if (one := shown(case.printed)) else "–", words=True),
    Column("counterexample", _size, words=True),
    Column("s", lambda case: f"{case.printed.seconds:.1f}"),
    Column("repaired", lambda case: _verdict(case.repaired), words=True),
    Column("certificates tested", lambda case: f"{case.trials[-1].certified:,}"),
    Column("s ", lambda case: "–" if case.repaired is None else f"{case.repaired.seconds:.1f}"),
)


BRIEF: tuple[Column[Case], ...] = (  # of a terminal
    Column("certifier", lambda case: case.entry.module, words=True),
    *COLUMNS[1:3],
    Column("patch, image", lambda case: _size(case).split(",")[0], words=True),
    COLUMNS[4],
    COLUMNS[5],
)


def facts(entry: Entry) -> list[tuple[str, str]]:
    """The facts told of an entry, each with its name."""
    told = (
        ("Claim", entry.claim),
        ("What is wrong", entry.fault),
        ("Repaired", entry.repair),
        ("Read", entry.read),
        ("Not known", entry.unknown),
        ("As tried here", entry.adapted),
    )
    return [(name, text) for name, text in told if text]


def sentences(case: Case) -> list[str]:
    """A sentence for each form, of what was seen."""
    found = []
    for trial in case.trials:
        finding = shown(trial)
        early = f", ended by {trial.stopped}" if trial.stopped else ""
        counts = f"{trial.certified:,} of {trial.ballots:,} dictated answers were certified and attacked"
        what = f"held; {counts}{early}" if finding is None else f"broken; {finding.sentence}"
        found.append(f"{trial.form}: {what}")
    return found


def markdown(cases: Sequence[Case]) -> str:
    """The page as Markdown."""
    parts = ["# The court", plain(HEAD), Table.of(COLUMNS, cases).markdown()]
    for case in cases:
        parts += [f"## {plain(case.entry.title)}"]
        parts += [f"**{name}.** {plain(text)}" for name, text in facts(case.entry)]
        parts += ["\n".join(f"- {plain(sentence)}" for sentence in sentences(case))]
        if case.drawing is not None:
            parts.append(code_block(case.drawing.text().split("\n")))
        if case.commands:
            parts.append(code_block(case.commands))
    return "\n\n".join(parts) + "\n"


def html(cases: Sequence[Case]) -> str:
    """The page as one HTML file that needs nothing but itself."""
    return render(
        "court.html.j2",
        head=HEAD,
        table=Table.of(COLUMNS, cases).html("All trials; seconds of processor time"),
        cases=[(case, facts(case.entry), sentences(case)) for case in cases],
    )


def as_dict(case: Case) -> dict[str, Any]:
    """The case as a file keeps it."""
    return {
        "certifier": case.entry.module,
        "title": case.entry.title,
        "alarm": case.alarm,
        "forms": {
            trial.form: {
                "verdict": trial.verdict,
                "seconds": round(trial.seconds, 2),
                "certified": trial.certified,
                "ballots": trial.ballots,
                "stopped": trial.stopped,
                "finding": None if (one := shown(trial)) is None else one.sentence,
            }
            for trial in case.trials
        },
        "replay": case.commands,
    }

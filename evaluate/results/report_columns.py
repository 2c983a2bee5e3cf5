"""The columns of a run's tables, as pages, Markdown and terminals show them. A new column stands here alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group
from rich.text import Text

from evaluate.results.metrics import AttackSummary, Share, Summary
from evaluate.results.sentences import certified_name, gap_text, survival_text, verdict
from evaluate.results.table import NONE, Column, Meter, Table
from robustpatch.cli.text import counted


@dataclass(frozen=True)
class Line:
    """One line of a run's result: an accuracy of all images, or of one attack (None: of none, or of all of them)."""

    name: str
    share: Share | None
    attack: AttackSummary | None = None
    budget: int | None = None
    certified_budget: int | None = None


@dataclass(frozen=True)
class ClassRow:
    """The images of one class: classified correctly, certified (None without certificates), standing under attack."""

    name: str
    clean: Share
    certified: Share | None
    under_all: Share | None


@dataclass(frozen=True)
class Part:
    """Images that have one outcome, as a part of all."""

    kind: str
    name: str
    count: int
    share: float


def percent(value: float) -> str:
    return f"{value:.1%}"


def exactly(share: Share) -> str:
    """As a percentage, with as many digits as the number of images is worth."""
    return f"{share.value:.2%}" if share.total >= 2000 else percent(share.value)


def interval(share: Share | None) -> str:
    """The 95% interval."""
    return "" if share is None else "–".join(map(percent, share.interval))


def accuracy(share: Share | None) -> str:
    return NONE if share is None else percent(share.value)


def _each(evaluations: int, images: int) -> str:
    return f"{evaluations / images:,.0f}" if images else NONE


def _attack(name: str, cell: Callable[[AttackSummary], str], *, brief: bool = False) -> Column[Line]:
    """A column that is empty but for attacks."""
    return Column(name, lambda line: "" if line.attack is None else cell(line.attack), brief=brief)


def _meter(share: Share | None, kind: str) -> str:
    return NONE if share is None else Meter.of(percent(share.value), share.value, kind)


SHARES: tuple[Column[Line], ...] = (
    Column("", lambda line: line.name, words=True, brief=True),
    Column("accuracy", lambda line: accuracy(line.share), brief=True),
    Column("95% interval", lambda line: interval(line.share), brief=True),
)
ATTACKS: tuple[Column[Line], ...] = (
    *SHARES,
    _attack("broken", lambda one: f"{one.broken}"),
    _attack("open images", lambda one: f"{one.open_images}"),
    _attack("evaluations", lambda one: f"{one.evaluations:,}", brief=True),
    _attack("per open image", lambda one: _each(one.evaluations, one.open_images)),
    Column("budget per open image", lambda line: "its own" if line.budget is None else f"{line.budget:,}"),
    _attack("tried", lambda one: NONE if one.visited is None else f"{one.visited:.0%}", brief=True),
    _attack("certified images", lambda one: f"{one.certified_images}"),
    _attack("per certified image", lambda one: _each(one.evaluations_certified, one.certified_images)),
    Column(
        "budget per certified image", lambda line: f"{line.certified_budget:,}" if line.certified_budget else "no limit"
    ),
    _attack("left the threat", lambda one: f"{one.out_of_threat}"),
    _attack("time", lambda one: f"{one.seconds:,.1f} s", brief=True),
)


@dataclass(frozen=True)
class Sizes:
    """A family of growing patches in words: its name, one of them, its size, and how one of size {0} is called."""

    name: str
    patch: str
    size: str
    called: str

    @classmethod
    def of(cls, growing: str) -> Sizes:
        """Of "square", "disc", or of the text of a mask."""
        known = (cls("square", "square patch", "side", "{0}×{0}"), cls("disc", "disc", "diameter", "disc:{0}"))
        own = {one.name: one for one in known}
        return own.get(growing, cls("mask", "scaled mask", "longer side", "{0} pixels"))

    @property
    def columns(self) -> tuple[Column[tuple[int, Share]], ...]:
        """Of certified accuracy by size."""
        return (
            Column(self.name, lambda row: self.called.format(row[0]), words=True),
            Column("accuracy", lambda row: accuracy(row[1])),
            Column("95% interval", lambda row: interval(row[1])),
            Column("images", lambda row: f"{row[1].hits}"),
        )


CLASSES: tuple[Column[ClassRow], ...] = (
    Column("class", lambda row: row.name, words=True),
    Column("images", lambda row: f"{row.clean.total}"),
    Column("clean", lambda row: _meter(row.clean, "muted-fill")),
    Column("certified", lambda row: _meter(row.certified, "certified")),
    Column("under attack", lambda row: _meter(row.under_all, "under-fill")),
)
PARTS: tuple[Column[Part], ...] = (
    Column("of all images", lambda part: part.name, words=True),
    Column("images", lambda part: f"{part.count}"),
    Column("share", lambda part: percent(part.share)),
)


def headline(summary: Summary, top_k: int = 1) -> list[Line]:
    """The accuracies of all images that a run tells, those without a value left out."""
    certified = certified_name(summary.allowance, top_k, alerts=summary.false_alerts is not None)
    lines = [
        Line("clean", summary.clean),
        Line("false alerts", summary.false_alerts),
        Line("certified (margin)", summary.certified_margin),
        Line(certified, summary.certified_exact),
    ]
    return [line for line in lines if line.share is not None]


def summary_table(
    summary: Summary,
    *,
    title: str,
    guard: float | None,
    deviation: float | None,
    seconds: float,
    float32_deviation: float | None = None,
    top_k: int = 1,
) -> Group:
    """Clean, certified and empirical accuracy with intervals, and the verdict below. `guard` is None without votes.

    `deviation` is the largest change of a score between evaluations, `float32_deviation` the largest distance from
    float32, both as measured; None where they were not.

    An attack's evaluations, and the share of open placements it tried, are those on images that are not certified; its
    time includes the certified ones. The vote-level adversary is what is left if every touched ablation may be turned.
    """
    lines = headline(summary, top_k)
    ends = [len(lines) - 1]
    lines += [Line(f"under {name}", attack.accuracy, attack) for name, attack in summary.attacks.items()]
    if summary.attacks:
        lines.append(Line("under all attacks", summary.under_all))
        if summary.under_votes is not None:
            lines.append(Line("vote-level adversary", summary.under_votes))
        ends.append(len(lines) - 1)
    table = Table.of([column for column in ATTACKS if column.brief], lines)
    known = summary.attacks and summary.gap is not None
    last = ["gap, undecided", f"{summary.gap:.1%}"] if known else ["all", ""]
    table.rows.append((*last, *[""] * (len(table.names) - 3), f"{seconds:.1f} s"))
    notes = []
    if guard is not None:
        measured = "" if deviation is None else f", measured deviation {deviation:.1e}"
        votes = f"{counted(summary.close_votes, 'vote')} close"
        if summary.votes:
            votes = (
                f"{summary.close_votes} of {summary.votes:,} votes close ({summary.close_votes / summary.votes:.2e})"
            )
        measured += "" if float32_deviation is None else f", {float32_deviation:.1e} from float32"
        notes.append(Text(f"guard {guard:g}{measured}; {votes}"))
    elif float32_deviation is not None:
        notes.append(Text(f"measured deviation {float32_deviation:.1e} from float32"))
    for name, attack in summary.attacks.items():
        if attack.out_of_threat:
            left = counted(attack.out_of_threat, "proposal")
            notes.append(Text(f"{name}: {left} outside the threat model, which do not count"))
    if summary.placeless:
        notes.append(Text(f"no patch has a place on {counted(summary.placeless, 'image')}, which nothing attacks"))
    if summary.undecided is not None and summary.undecided.images:
        notes.append(Text(gap_text(summary.undecided)))
    return Group(table.terminal(title, ends=ends), *notes, Text(survival_text(summary, top_k)), verdict(summary, top_k))

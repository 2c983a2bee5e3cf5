"""The columns of a run's tables: the page, the Markdown and the terminal show what is listed here, in this order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from evaluate.results.metrics import AttackSummary, Share
from evaluate.results.tables import NONE, Column, Meter


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


def percent(value: float) -> str:
    return f"{value:.1%}"


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
    _attack("each", lambda one: _each(one.evaluations, one.open_images)),
    Column("budget", lambda line: "its own" if line.budget is None else f"{line.budget:,}"),
    _attack("tried", lambda one: NONE if one.visited is None else f"{one.visited:.0%}", brief=True),
    _attack("certified images", lambda one: f"{one.certified_images}"),
    _attack("each of these", lambda one: _each(one.evaluations_certified, one.certified_images)),
    Column("their budget", lambda line: f"{line.certified_budget:,}" if line.certified_budget else "no limit"),
    _attack("left the threat", lambda one: f"{one.out_of_threat}"),
    _attack("time", lambda one: f"{one.seconds:,.1f} s", brief=True),
)
SIDES: tuple[Column[tuple[int, Share]], ...] = (
    Column("square", lambda row: f"{row[0]}×{row[0]}", words=True),
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
PARTS: tuple[Column[Mapping[str, object]], ...] = (
    Column("of all images", lambda part: str(part["name"]), words=True),
    Column("images", lambda part: f"{part['count']}"),
    Column("share", lambda part: percent(float(str(part["share"])))),
)


def _meter(share: Share | None, kind: str) -> str:
    return NONE if share is None else Meter.of(percent(share.value), share.value, kind)

"""Rows of boards -> one HTML page to sort and filter, which needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evaluate.report.page import render, script
from evaluate.results.metrics import Share
from robustpatch.cli.text import one_line

TASKS = {
    "recovery": "recovery",  # no patch changes the answer
    "detection": "detection",  # no patch changes it without an alert
    "none": "nothing",
}
FILTERS = ("dataset", "patch", "task")


@dataclass(frozen=True)
class Listed:
    """One row of the page. `certified` is of its `task`, a key of `TASKS`: None of "none". `attacked` and
    `certified_of_attacked` are of the same images, None where none was attacked. Of `published`, clean and certified,
    in percent, either may be None. `predict` and `certify` are in images per second. `command` makes the row again;
    `links` are addresses by what lies there.
    """

    board: str
    name: str
    dataset: str
    patch: str
    task: str
    clean: Share
    verdict: str
    command: str
    certified: Share | None = None
    false_alerts: Share | None = None
    attacked: Share | None = None
    certified_of_attacked: Share | None = None
    attacks: str | None = None
    published: tuple[float | None, float | None] = (None, None)
    source: str | None = None
    predict: float | None = None
    certify: float | None = None
    train_seconds: float | None = None
    links: dict[str, str] = field(default_factory=dict)


def page(rows: Sequence[Listed], title: str = "Boards of certified patch defenses") -> str:
    """The HTML: a line for each row, in the order given. Equal rows give equal pages; all text is escaped."""
    js, digest = script("board.js")
    boards = {name: [row for row in rows if row.board == name] for name in dict.fromkeys(row.board for row in rows)}
    return render(
        "board.html.j2",
        title=title,
        boards=boards,
        rows=[_shown(row) for row in rows],
        tasks=TASKS,
        filters={name: list(dict.fromkeys(getattr(row, name) for row in rows)) for name in FILTERS},
        js=js,
        script_hash=digest,
    )


def _shown(row: Listed) -> dict[str, Any]:
    """A row, and the numbers that its columns are sorted by; None comes last."""

    def value(share: Share | None) -> float | None:
        return None if share is None else share.value

    return {
        "row": row,
        "search": one_line(f"{row.name} {row.board}").lower(),
        "clean": value(row.clean),
        "certified": value(row.certified),
        "attacked": value(row.attacked),
        "published": row.published[1] if row.published[1] is not None else row.published[0],
    }

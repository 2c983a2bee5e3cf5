"""Rows -> Markdown and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from evaluate.cli.options import Options
from evaluate.leaderboard.rows import Row, Speed
from evaluate.results.metrics import Share
from evaluate.results.table import Column, Table, values
from evaluate.results.table import parquet as as_parquet
from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The most certified first; those that prove nothing last, by what is left of them under attack. One patch after
    the other.
    """
    patches = _patches(rows)

    def key(row: Row) -> tuple[int, float, float]:
        left = 0.0 if row.attacked is None else row.attacked.under_all.value
        certified = -1.0 if row.certified is None else row.certified.value
        if row.detected is not None:  # after all that recover, before those that prove nothing
            certified = row.detected.value - 1
        return (patches.index(row.entry.options.patch), -certified, -left)

    return sorted(rows, key=key)


def _patches(rows: Sequence[Row]) -> list[str]:
    """The patches of the board, each once, in the order of its rows."""
    return list(dict.fromkeys(row.entry.options.patch for row in rows))


def markdown(title: str, rows: Sequence[Row]) -> str:
    """The board: a line for each row, what the columns mean, and how each row is trained again."""
    ranked = ordered(rows)
    lines = [f"# {plain(title)}", "", table(ranked).markdown(), "", *(f"- {plain(note)}" for note in _notes(ranked))]
    commands = {row.entry.name: row.entry.retrain for row in ranked if row.entry.retrain is not None}
    if commands:
        lines += ["", "Trained by (each with `--data-root DIR`):", ""]
        lines += [f"- {plain(name)}: `{one_line(command).replace('`', chr(39))}`" for name, command in commands.items()]
    sources = list(dict.fromkeys(row.entry.source for row in ranked if row.entry.source is not None))
    if sources:
        lines += ["", "Published numbers:", "", *(f"- {plain(source)}" for source in sources)]
    return "\n".join(lines) + "\n"


def table(ranked: Sequence[Row]) -> Table:
    """A line for each row. Shares of fewer images than the others' say of how many."""
    return Table.of(_columns(ranked), ranked)


def _columns(ranked: Sequence[Row]) -> tuple[Column[Row], ...]:
    """All that a board tells of a row: in Markdown and on a terminal under a heading, in its files as a field."""
    whole = {row.whole.images for row in ranked}
    attacked = {row.attacked.images for row in ranked if row.attacked is not None}

    def under(row: Row) -> Share | None:
        return None if row.attacked is None else row.attacked.under_all

    def beside(row: Row) -> Share | None:
        return None if row.attacked is None else row.attacked.certified_exact

    def published(row: Row, number: int) -> float | None:
        return None if row.entry.published is None else row.entry.published[number]

    several, alerts = len(_patches(ranked)) > 1, any(row.alerts for row in ranked)
    patch = Column[Row](field="patch", value=lambda row: row.entry.options.patch, kind=str)
    if several:
        patch = replace(patch, name="patch", cell=lambda row: row.entry.options.patch, words=True)
    shown = Column[Row]("published clean / certified", lambda row: _published(row.entry.published))
    name = Column[Row]("defense", lambda row: row.entry.name + " BROKEN" * row.broken, words=True)
    return (
        patch,
        Column(field="dataset", value=lambda row: row.entry.options.dataset, kind=str),
        Column(field="task", value=lambda row: row.task, kind=str),
        replace(name, field="name", value=lambda row: row.entry.name, kind=str),
        Column(field="model", value=lambda row: row.entry.options.model or row.entry.options.checkpoint, kind=str),
        Column(field="defense", value=lambda row: row.entry.options.defense, kind=str),
        Column(field="images", value=lambda row: row.whole.images, kind=int),
        *_share("clean", lambda row: row.whole.clean, whole, "clean"),
        *_share("certified", lambda row: row.certified, whole, "certified"),
        *_share("detected", lambda row: row.detected, whole, "certified detection" if alerts else ""),
        *_share("false_alerts", lambda row: row.whole.false_alerts, whole, "false alerts" if alerts else ""),
        *_share("certified_margin", lambda row: row.whole.certified_margin, whole),
        Column(field="attacks", value=lambda row: row.entry.options.attacks if row.attacked else None, kind=str),
        Column(field="attacked_images", value=lambda row: row.attacked and row.attacked.images, kind=int),
        *_share("empirical", under, attacked, "under attack"),
        *_share("certified_of_attacked", beside, attacked, "certified of these"),
        *([Column("verdict", lambda row: row.verdict.upper(), words=True)] if several else []),
        *([shown] if any(row.entry.published for row in ranked) else []),
        Column("predict, images/s", lambda row: _rate(row.speed.predict)),
        Column("certify, images/s", lambda row: _rate(row.speed.certify)),
        Column(field="verdict", value=lambda row: row.verdict, kind=str),
        *(
            Column[Row](field=f"speed_{own.name}", value=lambda row, name=own.name: getattr(row.speed, name), kind=kind)
            for own, kind in zip(fields(Speed), (float, float, int, int, str, int), strict=True)
        ),
        Column(
            "training",
            lambda row: _duration(row.train_seconds),
            field="train_seconds",
            value=lambda row: row.train_seconds,
        ),
        Column(field="parameters", value=lambda row: row.parameters, kind=int),
        Column(field="published_clean", value=lambda row: published(row, 0)),
        Column(field="published_certified", value=lambda row: published(row, 1)),
        Column(field="source", value=lambda row: row.entry.source, kind=str),
        Column(field="retrain", value=lambda row: row.entry.retrain, kind=str),
        Column(field="command", value=lambda row: row.entry.command, kind=str),
        Column(field="report", value=lambda row: f"{row.records}/report.html", kind=str),
    )


def _share(field: str, of: Callable[[Row], Share | None], sizes: set[int], name: str = "") -> tuple[Column[Row], ...]:
    """The share, its exact 95% interval beside it in files; without a `name` in files alone."""

    def part(pick: Callable[[Share], float]) -> Callable[[Row], float | None]:
        return lambda row: None if (share := of(row)) is None else pick(share)

    cell = (lambda row: _percent(of(row), sizes)) if name else None
    return (
        Column(name, cell, field=field, value=part(lambda share: share.value)),
        Column(field=f"{field}_low", value=part(lambda share: share.interval[0])),
        Column(field=f"{field}_high", value=part(lambda share: share.interval[1])),
    )


def _notes(ranked: Sequence[Row]) -> list[str]:
    whole = _several({row.whole.images for row in ranked})
    attacked = _several({row.attacked.images for row in ranked if row.attacked is not None})
    attacks: dict[str, list[str]] = {}
    for row in ranked:
        if row.attacked is not None:
            attacks.setdefault(_attacks(row.entry.options), []).append(row.entry.called)
    speeds = [row.speed for row in ranked]
    places = sorted({f"{speed.machine}, {speed.threads} thread{'s' * (speed.threads > 1)}" for speed in speeds})
    options, patches = ranked[0].entry.options, _patches(ranked)
    where = f"{patches[0]} patch anywhere" if len(patches) == 1 else "each patch wherever it may lie"
    notes = [
        f"{options.dataset}, {where}; percent of the first {whole} test images; certified: "
        "predicted right and proved that no patch changes it"
    ]
    if any(row.alerts for row in ranked):
        notes.append(
            "certified detection: predicted right and proved that under every patch the class stays or there is an "
            "alert; false alerts: of clean images, which count as wrong; under attack: neither kept nor alerted is lost"
        )
    if attacked:
        notes.append(
            f"under attack: right after {_of_whom(attacks)} on the first {attacked} images, worst case over the "
            "attacks; beside it the share of the same images that is certified, below which no attack may come"
        )
    verdicts = {row.entry.called: row.verdict for row in ranked}
    for verdict, what in (
        ("held", "every certified image was attacked, and none changed"),
        ("not tested", "not every certified image was attacked, or none was certified"),
        ("broken", "a certified prediction was changed"),
    ):
        own = [name for name, one in verdicts.items() if one == verdict]
        if own:
            notes.append(f"{verdict.upper()}, {what}: {', '.join(own)}")
    notes.append(f"images per second: {'; '.join(places)}")
    notes.append("training: minutes as the checkpoint notes them, of the machine it was trained on; – where not noted")
    return notes


def _attacks(options: Options) -> str:
    """The attacks of a row, with what limits them: rows with others are not to be compared unawares."""
    limits = [
        f"{value:,} {what}"
        for value, what in ((options.steps, "steps"), (options.budget, "evaluations an image"))
        if value is not None
    ]
    return options.attacks + (f" ({', '.join(limits)})" if limits else "")


def _of_whom(attacks: dict[str, list[str]]) -> str:
    if len(attacks) == 1:
        return next(iter(attacks))
    return "; ".join(f"{attack} for {', '.join(names)}" for attack, names in attacks.items())


def _several(numbers: set[int]) -> str:
    low, high = (min(numbers), max(numbers)) if numbers else (0, 0)
    if not numbers:
        return ""
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (in brackets: how many, where fewer)"


def _percent(share: Share | None, sizes: set[int]) -> str:
    if share is None:
        return "–"
    fewer = f" ({share.total:,})" if share.total < max(sizes) else ""
    return f"{100 * share.value:.2f}{fewer}" if share.total >= 2000 else f"{100 * share.value:.1f}{fewer}"


def _published(given: tuple[float | None, float | None] | None) -> str:
    if given is None:
        return "–"
    return " / ".join("–" if value is None else f"{value:g}" for value in given)


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All numbers as JSON types, with the exact 95% intervals of the shares; a dictionary for each row, in order."""
    ranked = ordered(rows)
    return [values(_columns(ranked), row) for row in ranked]


def parquet(rows: Sequence[Row]) -> bytes:
    """The same as a Parquet file."""
    ranked = ordered(rows)
    return as_parquet(_columns(ranked), ranked)

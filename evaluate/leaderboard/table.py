"""Rows -> Markdown and Parquet."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.cli.options import Options
from evaluate.leaderboard.rows import Row
from evaluate.results.metrics import Share
from evaluate.results.tables import Column, Table
from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The most certified first; those that prove nothing last, by what is left of them under attack."""

    def key(row: Row) -> tuple[float, float]:
        left = 0.0 if row.attacked is None else row.attacked.under_all.value
        return (-1.0 if row.certified is None else row.certified.value, left)

    return sorted(rows, key=key, reverse=True)


def markdown(title: str, rows: Sequence[Row]) -> str:
    """The board: a line for each row, what the columns mean, and how each row is trained again."""
    ranked = ordered(rows)
    lines = [f"# {plain(title)}", "", table(ranked).markdown(), "", *(f"- {plain(note)}" for note in _notes(ranked))]
    commands = [(row.entry.name, row.entry.retrain) for row in ranked if row.entry.retrain is not None]
    if commands:
        lines += ["", "Trained by (each with `--data-root DIR`):", ""]
        lines += [f"- {plain(name)}: `{one_line(command).replace('`', chr(39))}`" for name, command in commands]
    sources = list(dict.fromkeys(row.entry.source for row in ranked if row.entry.source is not None))
    if sources:
        lines += ["", "Published numbers:", "", *(f"- {plain(source)}" for source in sources)]
    return "\n".join(lines) + "\n"


def table(ranked: Sequence[Row]) -> Table:
    """A line for each row. Shares of fewer images than the others' say of how many."""
    whole = {row.whole.images for row in ranked}
    attacked = {row.attacked.images for row in ranked if row.attacked is not None}

    def under(row: Row) -> Share | None:
        return None if row.attacked is None else row.attacked.under_all

    def beside(row: Row) -> Share | None:
        return None if row.attacked is None else row.attacked.certified_exact

    columns: tuple[Column[Row], ...] = (
        Column("defense", lambda row: row.entry.name + " BROKEN" * row.broken, words=True),
        Column("clean", lambda row: _percent(row.whole.clean, whole)),
        Column("certified", lambda row: _percent(row.certified, whole)),
        Column("under attack", lambda row: _percent(under(row), attacked)),
        Column("certified of these", lambda row: _percent(beside(row), attacked)),
        Column("published clean / certified", lambda row: _published(row.entry.published)),
        Column("predict, images/s", lambda row: _rate(row.speed.predict)),
        Column("certify, images/s", lambda row: _rate(row.speed.certify)),
        Column("training", lambda row: _duration(row.train_seconds)),
    )
    return Table.of(columns, ranked)


def _notes(ranked: Sequence[Row]) -> list[str]:
    whole = _several({row.whole.images for row in ranked})
    attacked = _several({row.attacked.images for row in ranked if row.attacked is not None})
    attacks: dict[str, list[str]] = {}
    for row in ranked:
        if row.attacked is not None:
            attacks.setdefault(_attacks(row.entry.options), []).append(row.entry.name)
    speeds = [row.speed for row in ranked]
    places = sorted({f"{speed.machine}, {speed.threads} thread{'s' * (speed.threads > 1)}" for speed in speeds})
    options = ranked[0].entry.options
    notes = [
        f"{options.dataset}, {options.patch} patch anywhere; percent of the first {whole} test images; certified: "
        "predicted right and proved that no patch changes it"
    ]
    if attacked:
        notes.append(
            f"under attack: right after {_of_whom(attacks)} on the first {attacked} images, worst case over the "
            "attacks; beside it the share of the same images that is certified, below which no attack may come"
        )
    verdicts = {row.entry.name: row.verdict for row in ranked}
    for verdict, what in (
        ("held", "every certified image was attacked, and none changed"),
        ("not tested", "not every certified image was attacked"),
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


_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def parquet(rows: Sequence[Row]) -> bytes:
    """All numbers, with the exact 95% intervals of the shares; a line for each row, in the table's order."""
    found = [row.as_dict() for row in ordered(rows)]
    kinds = {
        "name": str,
        "model": str,
        "defense": str,
        "attacks": str,
        "verdict": str,
        "source": str,
        "retrain": str,
        "speed_machine": str,
        "images": int,
        "attacked_images": int,
        "parameters": int,
        "speed_images": int,
        "speed_batch": int,
        "speed_threads": int,
    }
    schema = pa.schema([(key, _TYPES[kinds.get(key, float)]) for key in found[0]])
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(found, schema=schema), content)
    return content.getvalue().to_pybytes()

"""One table of columns: what is listed once is in the records, on the page, in the Markdown and on the terminal."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module

import pyarrow as pa
import pytest
from rich.console import Console

from evaluate.report.data import read_report
from evaluate.report.markdown import markdown
from evaluate.report.page import page
from evaluate.results import report_columns as columns
from evaluate.results.metrics import summarise
from evaluate.results.report_columns import summary_table
from evaluate.results.table import Code, Column, Meter, Strong, Table, schema_of
from evaluate.runs.records import SCHEMA, AttackRecord, Record
from tests.evaluate.runs.test_runner import run


@dataclass(frozen=True)
class Longer(Record):
    """A record with one more field."""

    colour: str | None = None


def test_the_schema_is_the_fields_of_a_record():
    """In their order, with their types: no column is listed a second time, and a field more is a column more."""
    assert SCHEMA.names == [field.name for field in fields(Record)]
    attack = SCHEMA.field("attacks").type.value_type
    assert [field.name for field in attack] == [field.name for field in fields(AttackRecord)]
    kinds = {"index": pa.int64(), "certified_exact": pa.bool_(), "margin_exact": pa.float64()}
    assert {name: SCHEMA.field(name).type for name in kinds} == kinds
    assert (attack.field("by").type, attack.field("corners").type) == (pa.string(), pa.list_(pa.int64()))
    assert schema_of(Longer).names == [*SCHEMA.names, "colour"]


def test_one_entry_adds_a_column_everywhere(tmp_path, monkeypatch):
    """The page, the Markdown and, since it is brief, the terminal show it."""
    records = run(tmp_path)
    more = Column[columns.Line]("words", lambda line: f"*{line.name}* lost", words=True, brief=True)
    for module in ("evaluate.report.page", "evaluate.results.report_columns"):
        monkeypatch.setattr(import_module(module), "ATTACKS", (*columns.ATTACKS, more))
    report = read_report(tmp_path)
    name = report.attacks[0].name
    assert f'<td data-label="words">*{name}* lost</td>' in page(report)
    assert rf"\*{name}\* lost" in markdown(report)
    console = Console(width=300)
    with console.capture() as shown:
        console.print(summary_table(summarise(records), title="t", guard=1e-4, deviation=None, seconds=1.0))
    assert f"*under {name}* lost" in shown.get()


@pytest.mark.parametrize("form", ["markdown", "html", "terminal"])
def test_cells_are_text_in_every_form(form):
    """Marks of Markdown, HTML and rich mean themselves; numbers stand on the right."""
    rows = ["<b>|[red]*x*", Strong("s"), Code("a`b"), Meter.of("50.0%", 0.5, "certified")]
    table = Table.of((Column[str]("of|", str, words=True), Column[str]("n", lambda row: row)), rows)
    if form == "markdown":
        lines = table.markdown().splitlines()
        assert lines[:2] == [r"| of\| | n |", "| --- | ---: |"]
        assert lines[2] == r"| \<b\>\|\[red\]\*x\* | \<b\>\|\[red\]\*x\* |"
        assert lines[3:5] == ["| s | **s** |", r"| a\`b | `a'b` |"]
    elif form == "html":
        html = str(table.html("c<"))
        assert "<caption>c&lt;</caption>" in html
        assert (
            '<th scope="row">&lt;b&gt;|[red]*x*</th><td class="number" data-label="n">&lt;b&gt;|[red]*x*</td>' in html
        )
        assert '<span class="meter certified" style="--v:50.0%"></span>50.0%' in html
    else:
        console = Console(width=100)
        with console.capture() as shown:
            console.print(table.terminal("[red]"))
        assert "<b>|[red]*x*" in shown.get()
        assert "[red]" in shown.get().splitlines()[0]


def test_nothing_is_cut_off_where_the_terminal_is_narrow():
    """A table that does not fit is a line or two for each row, with the names of its columns."""
    rows = ["short", "a name that is long"]
    table = Table.of((Column[str]("", str, words=True), Column[str]("a long heading", lambda row: row)), rows)
    wide, narrow = Console(width=80), Console(width=30)
    with wide.capture() as shown:
        wide.print(table.terminal("t"))
    assert "──" in shown.get()
    with narrow.capture() as shown:
        narrow.print(table.terminal("t"))
    assert " ".join(shown.get().split()) == (
        "t short: a long heading short a name that is long: a long heading a name that is long"
    )

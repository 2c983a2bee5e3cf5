"""One table of columns: listed once, they are in Parquet and JSON, in Markdown, on terminals and on pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
from markupsafe import Markup, escape

from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as Shown
    from rich.text import Text as RichText

R = TypeVar("R")
NONE = "–"  # for a value that does not exist
_KINDS: dict[Any, pa.DataType] = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


class Strong(str):
    """The text of a cell that stands out."""


class Code(str):
    """The text of a cell that is a name of a file or a command."""


class Meter(str):
    """The text of a cell that a page draws as a bar, too: `filled` is the share of it, `kind` its colour."""

    filled: float
    kind: str

    @classmethod
    def of(cls, text: str, filled: float, kind: str) -> Meter:
        meter = cls(text)
        meter.filled, meter.kind = filled, kind
        return meter


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of rows: shown under the heading `name` by the text of its `cell`, and kept in files as a `field` of
    type `kind` (str, int, float or bool) by its `value`. One without a cell is only kept, one without a value only
    shown.

    Numbers stand on the right, `words` on the left. `brief` columns are shown on a terminal, too, where there is less
    room.
    """

    name: str = ""
    cell: Callable[[R], str] | None = None
    words: bool = False
    brief: bool = False
    field: str = ""
    value: Callable[[R], Any] | None = None
    kind: type = float


def schema(columns: Iterable[Column[Any]]) -> pa.Schema:
    """The Parquet schema of the columns that are kept in files."""
    return pa.schema([(column.field, _KINDS[column.kind]) for column in columns if column.value is not None])


def values(columns: Iterable[Column[R]], row: R) -> dict[str, Any]:
    """Values that files keep of a row, by field."""
    return {column.field: column.value(row) for column in columns if column.value is not None}


def parquet(columns: Sequence[Column[R]], rows: Iterable[R]) -> bytes:
    """A Parquet file with a line for each of `rows`."""
    content = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([values(columns, row) for row in rows], schema=schema(columns)), content)
    return content.getvalue().to_pybytes()


def schema_of(kind: type) -> pa.Schema:
    """The columns that hold instances of a dataclass, field by field in their order: texts, whole numbers of 64 bits,
    floats, booleans, lists, and dataclasses as structures. Every column may hold nulls.
    """
    return pa.schema(_fields(kind))


def _fields(kind: type) -> list[tuple[str, pa.DataType]]:
    hints = get_type_hints(kind)
    return [(field.name, _type(hints[field.name])) for field in fields(kind)]


def _type(hint: Any) -> pa.DataType:
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is list:
        return pa.list_(_type(get_args(hint)[0]))
    return _KINDS[hint] if hint in _KINDS else pa.struct(_fields(hint))


@dataclass(frozen=True)
class Table:
    """The names of the columns, which of them hold words, and the cells of each row."""

    names: tuple[str, ...]
    words: tuple[bool, ...]
    rows: list[tuple[str, ...]]

    @classmethod
    def of(cls, columns: Sequence[Column[R]], rows: Iterable[R]) -> Table:
        """A row of cells for each of `rows`."""
        shown = [(column, column.cell) for column in columns if column.cell is not None]
        cells = [tuple(cell(row) for _, cell in shown) for row in rows]
        return cls(tuple(column.name for column, _ in shown), tuple(column.words for column, _ in shown), cells)

    def markdown(self) -> str:
        """Lines of Markdown; what a cell holds is text, whatever marks are in it."""
        head, *rows = ([_marked(cell) for cell in row] for row in [self.names, *self.rows])
        rule = ["---" if words else "---:" for words in self.words]
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])

    def latex(self) -> str:
        """A tabular of LaTeX, for booktabs; what a cell holds is text."""
        head, *rows = (" & ".join(map(_escaped, row)) for row in [self.names, *self.rows])
        kinds = "".join("l" if words else "r" for words in self.words)
        lines = [rf"\begin{{tabular}}{{{kinds}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        return "\n".join([*lines, *(rf"{row} \\" for row in rows), r"\bottomrule", r"\end{tabular}"])

    def terminal(self, title: str | None = None, *, ends: Iterable[int] = (), wrap: bool = False) -> OnTerminal:
        """A table for rich, with a line below the rows in `ends`. Long cells are wrapped where `wrap` says so. Where a
        terminal is too narrow for it, each row is a few lines, so that nothing is cut off.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as Shown
        from rich.text import Text

        shown = Shown(
            title=None if title is None else Text(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False
        )
        for name, words in zip(self.names, self.words, strict=True):
            shown.add_column(Text(name), justify="left" if words else "right", no_wrap=not (wrap and words))
        last = set(ends)
        for number, row in enumerate(self.rows):
            shown.add_row(*map(Text, row), end_section=number in last)
        return OnTerminal(shown, Text("\n".join([*([title] if title else []), *self._lines()])), wrap)

    def _lines(self) -> list[str]:
        """A line for each row, the names of columns beside their cells; what is empty is left out."""
        return [
            f"{row[0]}: " + ", ".join(f"{name} {cell}".strip() for name, cell in _filled(self.names[1:], row[1:]))
            for row in self.rows
        ]

    def html(self, caption: str | None = None, kind: str = "numbers") -> Markup:
        """An HTML table of a class of the style; the first cell of a row is its name. All text is escaped."""
        head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in self.names)
        rows = Markup("\n").join(
            Markup('<tr><th scope="row">{}</th>{}</tr>').format(
                row[0], Markup("").join(map(_cell, row[1:], self.words[1:], self.names[1:]))
            )
            for row in self.rows
        )
        said = Markup("") if caption is None else Markup("<caption>{}</caption>\n").format(caption)
        return Markup('<table class="{}">\n{}<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>').format(
            kind, said, head, rows
        )


@dataclass(frozen=True)
class OnTerminal:
    """A table for rich to print, or its rows as `lines` where it does not fit."""

    table: Shown
    lines: RichText
    wraps: bool

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        size = console.measure(self.table, options=options.update(width=10**4))
        needed = size.minimum if self.wraps else size.maximum
        yield self.table if needed <= options.max_width else self.lines


_LATEX = {mark: f"\\{mark}" for mark in "&%$#_{}"}
_LATEX |= {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "×": r"$\times$",
    "†": r"\textdagger{}",
}


def _escaped(cell: str) -> str:
    text = one_line(cell).translate(str.maketrans(_LATEX))
    return rf"\textbf{{{text}}}" if isinstance(cell, Strong) else text


def _marked(cell: str) -> str:
    if isinstance(cell, Code):
        return f"`{one_line(cell).replace('`', chr(39))}`" if cell else ""
    return f"**{plain(cell)}**" if isinstance(cell, Strong) else plain(cell)


def _filled(names: Sequence[str], cells: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, cell) for name, cell in zip(names, cells, strict=True) if cell]


def _cell(cell: str, words: bool, name: str) -> Markup:
    inside = escape(str(cell))
    if isinstance(cell, Strong):
        inside = Markup("<strong>{}</strong>").format(inside)
    if isinstance(cell, Meter):
        bar = '<span class="meter {}" style="--v:{}%"></span>{}'
        inside = Markup(bar).format(cell.kind, round(100 * cell.filled, 1), inside)
    kind = Markup("") if words else Markup(' class="number"')
    return Markup('<td{} data-label="{}">{}</td>').format(kind, name, inside)

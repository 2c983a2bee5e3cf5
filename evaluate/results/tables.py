"""One builder of tables: columns over rows, as Markdown, for a terminal, or as HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from markupsafe import Markup, escape

from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line

if TYPE_CHECKING:
    from rich.table import Table as Shown

R = TypeVar("R")
NONE = "–"  # what stands for a value that there is not


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
    """A column: its name, and the text of its cell in a row. Numbers stand on the right, `words` on the left.

    `brief` columns are shown on a terminal, too, where there is less room.
    """

    name: str
    cell: Callable[[R], str]
    words: bool = False
    brief: bool = False


@dataclass(frozen=True)
class Table:
    """The names of the columns, which of them hold words, and the cells of each row."""

    names: tuple[str, ...]
    words: tuple[bool, ...]
    rows: list[tuple[str, ...]]

    @classmethod
    def of(cls, columns: Sequence[Column[R]], rows: Iterable[R]) -> Table:
        """A row of cells for each of `rows`."""
        cells = [tuple(column.cell(row) for column in columns) for row in rows]
        return cls(tuple(column.name for column in columns), tuple(column.words for column in columns), cells)

    def markdown(self) -> str:
        """Lines of Markdown; what a cell holds is text, whatever marks are in it."""
        head, *rows = ([_marked(cell) for cell in row] for row in [self.names, *self.rows])
        rule = ["---" if words else "---:" for words in self.words]
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])

    def terminal(self, title: str | None = None, *, ends: Iterable[int] = (), wrap: bool = False) -> Shown:
        """A table of rich, with a line below the rows in `ends`. Long cells are wrapped where `wrap` says so."""
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
        return shown

    def html(self, caption: str | None = None, kind: str = "numbers") -> Markup:
        """An HTML table of a class of the style; the first cell of a row is its name. All text is escaped."""
        head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in self.names)
        rows = Markup("\n").join(
            Markup('<tr><th scope="row">{}</th>{}</tr>').format(
                row[0], Markup("").join(map(_cell, row[1:], self.words[1:]))
            )
            for row in self.rows
        )
        said = Markup("") if caption is None else Markup("<caption>{}</caption>\n").format(caption)
        return Markup('<table class="{}">\n{}<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody>\n</table>').format(
            kind, said, head, rows
        )


def _marked(cell: str) -> str:
    if isinstance(cell, Code):
        return f"`{one_line(cell).replace('`', chr(39))}`" if cell else ""
    return f"**{plain(cell)}**" if isinstance(cell, Strong) else plain(cell)


def _cell(cell: str, words: bool) -> Markup:
    inside = escape(str(cell))
    if isinstance(cell, Strong):
        inside = Markup("<strong>{}</strong>").format(inside)
    if isinstance(cell, Meter):
        bar = '<span class="meter {}" style="--v:{}%"></span>{}'
        inside = Markup(bar).format(cell.kind, round(100 * cell.filled, 1), inside)
    return Markup("<td>{}</td>" if words else '<td class="number">{}</td>').format(inside)

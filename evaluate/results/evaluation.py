"""The result of an evaluation, for Python and notebooks: records, their summary, tables and a figure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from functools import cached_property
from io import StringIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from markupsafe import Markup

from evaluate.results.drawing import load_matplotlib
from evaluate.results.metrics import Summary, summarise
from evaluate.results.report_columns import ATTACKS, Line, headline
from evaluate.results.sentences import verdict
from evaluate.results.table import Table, schema_of
from evaluate.runs.records import AttackRecord, Record
from robustpatch.cli.text import visible
from robustpatch.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Evaluation(list[Record]):
    """The records of an evaluation, one an image, and what follows from them.

    `title` says of what it is, `top_k` among how many classes labels were to stay. As text and in notebooks it is the
    table of accuracies and the verdict.
    """

    def __init__(self, records: Iterable[Record], title: str = "", top_k: int = 1) -> None:
        super().__init__(records)
        self.title, self.top_k = title, top_k

    @cached_property
    def summary(self) -> Summary:
        """The accuracies, with exact 95% intervals, and the verdict."""
        return summarise(self)

    @property
    def verdict(self) -> str:
        """HELD, BROKEN, NOT TESTED or NO CERTIFICATE, and what that rests on, in a sentence."""
        return verdict(self.summary, self.top_k).plain

    @property
    def lines(self) -> list[Line]:
        """The accuracies: clean, certified, under each attack and under all."""
        attacks = [Line(f"under {name}", one.accuracy, one) for name, one in self.summary.attacks.items()]
        return [
            *headline(self.summary, self.top_k),
            *attacks,
            *([Line("under all attacks", self.summary.under_all)] if attacks else []),
        ]

    @property
    def table(self) -> Table:
        """The same as a table, which turns itself to `.markdown()`, `.html()` and `.latex()`."""
        return Table.of([column for column in ATTACKS if column.brief], self.lines)

    def to_arrow(self) -> pa.Table:
        """A flat table: one row for each image, attack and threat, an image without attacks one row alone.

        Columns are the fields of `Record`, and those of `AttackRecord` with "attack_" before them, but for `attack`.
        """
        image = [field for field in schema_of(Record) if field.name != "attacks"]
        attack = [field.with_name(_column(field.name)) for field in schema_of(AttackRecord)]
        rows: list[dict[str, Any]] = []
        for record in self:
            own = {field.name: getattr(record, field.name) for field in image}
            tried = [{_column(one.name): getattr(found, one.name) for one in fields(found)} for found in record.attacks]
            rows += [{**own, **found} for found in tried or [{}]]
        return pa.Table.from_pylist(rows, schema=pa.schema([*image, *attack]))

    def to_pandas(self) -> Any:
        """`to_arrow` as a pandas frame. Raises `InvalidInput` where pandas is not installed."""
        try:
            import pandas  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise InvalidInput("pandas is not installed; pip install pandas, or take to_arrow") from error
        return self.to_arrow().to_pandas()

    def plot(self) -> Figure:
        """A figure of the accuracies as bars, with their 95% intervals."""
        load_matplotlib()
        from matplotlib.figure import Figure

        lines = self.lines[::-1]
        figure = Figure(figsize=(6, 0.9 + 0.4 * len(lines)), layout="constrained")
        axes = figure.subplots()
        for row, line in enumerate(lines):
            assert line.share is not None
            low, high = line.share.interval
            value = line.share.value
            proof = line.name.startswith("certified")
            axes.barh(row, 100 * value, color="#1b7f5c" if proof else "#7a8ba3" if line.name == "clean" else "#c96a3b")
            axes.plot([100 * low, 100 * high], [row, row], color="black", linewidth=1)
        axes.set_yticks(range(len(lines)), [visible(line.name) for line in lines])
        axes.set_xlim(0, 100)
        axes.set_xlabel("of all images, percent")
        axes.set_title(visible(self.title), fontsize="medium", loc="left", parse_math=False)
        return figure

    def __repr__(self) -> str:
        if not self:
            return "Evaluation([])"
        from robustpatch.cli.consoles import TextConsole  # rich is slow to import

        text = StringIO()
        TextConsole(file=text, width=100, no_color=True).print(
            self.table.terminal(self.title or None), self.verdict, sep=""
        )
        return text.getvalue()

    def _repr_html_(self) -> str:
        if not self:
            return "<p>no records</p>"
        return Markup("{}<p>{}</p>").format(self.table.html(self.title or None), self.verdict)


def _column(name: str) -> str:
    return name if name == "attack" else f"attack_{name}"

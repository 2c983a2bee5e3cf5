"""Consoles on which text is text: no name or message of others changes colours, draws pictures or moves the cursor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from robustpatch.cli.text import visible


class TextConsole(Console):
    """rich's console without its mark-up ([red]), its emoji (:x:) and its highlighting of numbers; characters that a
    terminal would obey are shown as their codes, inside tables and progress bars, too.

    Every command prints to one of these, so that none has to think of it where it prints.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)

"""Pictures drawn by matplotlib, whatever the environment says of windows; whole or not at all, wherever fsspec goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate.runs.output import folder_of, place_of, writing
from robustpatch.cli.text import visible
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def load_matplotlib() -> None:
    """Import matplotlib without the backend that MPLBACKEND names: pictures are drawn to files, which needs none, and a
    notebook's name for its own, handed on to a command, would be refused in an environment without that notebook.
    """
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named


def write_figure(store: Store, name: str, figure: Figure, **options: Any) -> None:
    """Write it in the format that the name ends in; what it says is text, and no formula between dollar signs."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(visible(text.get_text()))
    content = BytesIO()
    figure.savefig(content, format=name.rpartition(".")[2], **options)
    store.write(name, content.getvalue())


def in_legend(name: str) -> str:
    """A label that says `name`: matplotlib leaves out those that begin with "_"."""
    return f" {name}" if name.startswith("_") else name


@contextmanager
def drawing_to(output: str) -> Iterator[None]:
    """Hold the place of a picture while the block draws it. Raises `InvalidInput` before, for one of no known kind, and
    where none can be written.
    """
    if not output.endswith((".png", ".svg", ".pdf")):
        raise InvalidInput(f"output is {output}; let it end in .png, .svg or .pdf")
    with writing(folder_of(output)):
        yield


def write_picture(path: str | Path, figure: Figure) -> None:
    """Write it to a path, or a place that fsspec knows. Raises `InvalidInput` where it cannot be written."""
    name = str(path).rpartition("/")[2]
    write_figure(place_of(folder_of(path)), name, figure, dpi=150)

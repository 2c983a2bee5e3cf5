"""python -m evaluate.learning CHECKPOINT...: accuracy on validation images epoch by epoch, as a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import typer

from evaluate.cli.command import HELD, takes
from evaluate.results.drawing import drawing_to, in_legend, load_matplotlib, write_picture
from robustpatch.checkpoints import load_checkpoint
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.errors import InvalidInput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_MEASURES = {"clean": ("clean", ":"), "certified_margin": ("margin", "--"), "certified_exact": ("exact", "-")}


@dataclass(frozen=True)
class Learning:
    """One training: its epochs over all stages, and after how many of them another stage began."""

    name: str
    rows: list[dict[str, Any]]

    @property
    def stages(self) -> list[int]:
        """Epochs done before each stage but the first; epochs are counted anew in each."""
        return [done for done, row in enumerate(self.rows) if done and row["epoch"] == 1]

    @property
    def minutes(self) -> list[float]:
        """Of training, after each epoch."""
        return [seconds / 60 for seconds in accumulate(row["seconds"] for row in self.rows)]


def read_learning(name: str) -> Learning:
    """Reads the history that a checkpoint keeps of its training. Raises `InvalidInput` where it keeps none."""
    loaded = load_checkpoint(name)
    rows = loaded.config.get("history")
    if not rows:
        raise InvalidInput(f"checkpoint {name} keeps no history; train it by robustpatch.train or robustpatch.recipe")
    return Learning(loaded.name, rows)


def draw(trainings: Sequence[Learning], path: str | Path) -> None:
    """Clean and certified accuracy after each epoch, a colour for each training and a thin line where a stage begins;
    the ending of `path` names the format (png, svg, pdf).
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, training in enumerate(trainings):
        for key, (what, style) in _MEASURES.items():
            measured = [(epoch, row[key]) for epoch, row in enumerate(training.rows, 1) if row.get(key) is not None]
            if measured:
                epochs, shares = [epoch for epoch, _ in measured], [100 * float(value) for _, value in measured]
                name = in_legend(f"{training.name}, ") * (len(trainings) > 1)
                label = name + (what if what == "clean" else f"certified ({what})")
                axes.plot(epochs, shares, style, color=f"C{number}", marker=".", linewidth=1.2, label=label)
        for done in training.stages:
            axes.axvline(done + 0.5, color=f"C{number}", linewidth=0.8, alpha=0.5)
    minutes = ", ".join(f"{training.minutes[-1]:.0f}" for training in trainings)
    axes.set_title(f"{', '.join(t.name for t in trainings)}: {minutes} minutes of training", loc="left", fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy on validation images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_picture(path, figure)


@app.command(cls=Command)
@takes
def main(
    checkpoints: Annotated[list[str], typer.Argument(help="Shipped checkpoints' names, or files.")],
    output: Annotated[str, typer.Option(help="The picture: .png, .svg or .pdf.")] = "learning.png",
) -> int:
    """Draw clean and certified accuracy on validation images against epochs.

    Exit status 0: done. 2: wrong call. 3: internal error.
    """
    with drawing_to(output):
        draw([read_learning(name) for name in checkpoints], output)
    TextConsole().print(f"drawn to {output}", soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()

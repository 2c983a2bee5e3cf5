"""python -m evaluate.curve RUN...: accuracy against evaluations spent, from the records of runs with other budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evaluate.cli.command import HELD, takes
from evaluate.model.identity import NOT_RESUMED
from evaluate.results.drawing import drawing_to, in_legend, load_matplotlib, write_picture
from evaluate.results.metrics import Share, summarise
from evaluate.results.table import Column, Table
from evaluate.runs.completed_run import read_run
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.errors import InvalidInput

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Point:
    """One attack in one run: accuracy under it, and its evaluations on the images that are not certified, per image
    of the run. `budget`: the most that --budget allowed it on an image, None where the attack's own held."""

    attack: str
    evaluations: float
    accuracy: Share
    budget: int | None


@dataclass(frozen=True)
class Curve:
    """The points of several runs on the same images and model, by attack and evaluations; accuracy that none can pass
    (clean) and below which none can fall (certified, None without certificates)."""

    points: list[Point]
    clean: Share
    certified: Share | None
    title: str


POINTS: tuple[Column[Point], ...] = (
    Column("attack", lambda point: point.attack, words=True),
    Column("budget", lambda point: "own" if point.budget is None else f"{point.budget:,}"),
    Column("evaluations per image", lambda point: f"{point.evaluations:,.0f}"),
    Column("accuracy", lambda point: f"{point.accuracy.value:.1%}"),
)


def read_curve(runs: Sequence[str | Path]) -> Curve:
    """The runs' records as one curve. Raises `InvalidInput` where one is missing, unfinished or of something else."""
    points: list[Point] = []
    shared = summary = run = None
    for output in runs:
        run = read_run(output)
        claim, records = run.claim, run.records
        same = {key: claim[key] for key in ("images_sha256", "model_sha256", "threat", "num_images", "dataset")}
        same |= {key: claim.get(key) for key in ("model_files", "model_values", NOT_RESUMED)}
        if shared is not None and same != shared:
            differing = ", ".join(key for key in same if same[key] != shared[key])
            raise InvalidInput(
                f"run {output} has another {differing} than {runs[0]}; a curve is of one model and threat"
            )
        shared, summary = same, summarise(records)
        for name, found in summary.attacks.items():
            spent = found.evaluations / len(records)
            points.append(Point(name, spent, found.accuracy, claim.get("budget")))
    if summary is None or run is None:
        raise InvalidInput("runs is empty; name at least one --output of robustpatch attack-vs-cert")
    points.sort(key=lambda point: (point.attack, point.evaluations))
    return Curve(points, summary.clean, summary.certified_exact, run.title)


def draw_curve(curve: Curve, path: str | Path) -> None:
    """Draw the curve; the ending of `path` names the format (png, svg, pdf)."""
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(point.attack for point in curve.points), "osD^vP*Xhp<>" * 3, strict=False))
    for attack, marker in markers.items():
        own = [point for point in curve.points if point.attack == attack]
        spent = [max(1.0, point.evaluations) for point in own]
        axes.plot(
            spent, [100 * point.accuracy.value for point in own], marker=marker, markersize=5, label=in_legend(attack)
        )
    ends = ((curve.clean, "clean", ":"), (curve.certified, "certified (exact)", "--"))
    for share, name, style in ends:
        if share is not None:
            axes.axhline(100 * share.value, color="black", linewidth=1, linestyle=style, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("evaluations per image (an ablation scored forward; backward counts one more)")
    axes.set_ylabel("accuracy, %")
    axes.set_title(curve.title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    write_picture(path, figure)


@app.command(cls=Command)
@takes
def main(
    runs: shared.Runs, output: Annotated[str, typer.Option(help="The picture: .png, .svg or .pdf.")] = "curve.png"
) -> int:
    """Draw accuracy under attack against the evaluations spent, of one run for each budget.

    Exit status 0: done. 2: wrong call. 3: internal error.
    """
    with drawing_to(output):
        curve = read_curve(runs)
        draw_curve(curve, output)
    console = TextConsole()
    console.print(Table.of(POINTS, curve.points).terminal(curve.title))
    console.print(f"drawn to {output}", soft_wrap=True)
    return HELD


if __name__ == "__main__":
    app()

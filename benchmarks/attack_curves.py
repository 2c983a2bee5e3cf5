"""python benchmarks/attack_curves.py: attacks of the literature at equal evaluations, on classifiers of known bounds.

Attacked are those of the first images of the sample that are classified correctly and not certified: no attack can
break others. `run` writes a line of JSON for each attack, classifier and budget, and goes on where it was; `report`
draws accuracy against the evaluations that were really spent on an image attacked, since ART looks at no budget.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from attacks import judge, parse_attacks
from robustpatch import PatchThreat
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.data.images import load_images

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
THREAT = PatchThreat(5, 5)
BOARDS = {
    "mnist-columns2": "columns",
    "mnist-columns2-rows2": "columns and rows",
    "mnist-ibp": "IBP",
    "mnist-patchcleanser": "PatchCleanser",
    "mnist-undefended": "undefended",
}
ATTACKS = {
    "standard": "standard",
    "sparse-rs:100000": "Sparse-RS",
    "pgd-published": "patch PGD as published",
    "lavan": "LaVAN",
    "art-patch": "ART's AdversarialPatchPyTorch",
}


@torch.no_grad()
def opened(checkpoint: str, images: int) -> tuple[Any, torch.Tensor, torch.Tensor, int, int]:
    """The classifier, the images open to attack with their labels, and how many are right and how many certified."""
    model = load_checkpoint(checkpoint).model.eval().requires_grad_(False)
    x, y = load_images("mnist-sample").batch(range(images))
    right = as_classifier(model).predict(x) == y
    proved = model.certify(x, THREAT).certified if isinstance(model, CertifiedClassifier) else torch.zeros_like(right)
    rows = right & ~proved
    return model, x[rows], y[rows], int(right.sum()), int((right & proved).sum())


def one(checkpoint: str, attack: str, budget: int, images: int) -> dict[str, Any]:
    model, x, y, right, proved = opened(checkpoint, images)
    (search,) = parse_attacks(attack, budget=budget)
    found = search(model, x, y, THREAT, generator=torch.Generator().manual_seed(0))
    broken = int(judge(model, x, y, THREAT, found).broken.sum())
    spent = float(found.evaluations.float().mean())
    return {"right": right, "certified": proved, "broken": broken, "evaluations": spent}


@app.command()
def run(
    output: Annotated[Path, typer.Option(help="Lines of JSON; what is in it is not done again.")],
    images: Annotated[int, typer.Option()] = 50,
    budgets: Annotated[str, typer.Option(help="Evaluations an image at the most.")] = "500,2000,8000",
    boards: Annotated[str, typer.Option()] = ",".join(BOARDS),
) -> None:
    """Run every attack on every classifier at every budget, the cheap ones first."""
    torch.set_num_threads(1)
    output.touch()
    done = [json.loads(line)["case"] for line in output.read_text().splitlines()]
    for budget in map(int, budgets.split(",")):
        for checkpoint in boards.split(","):
            for attack in ATTACKS:
                case = [checkpoint, attack, budget, images]
                if case not in done:
                    note = {"case": case, **one(checkpoint, attack, budget, images)}
                    with output.open("a") as file:
                        file.write(json.dumps(note) + "\n")


@app.command()
def report(
    output: Annotated[Path, typer.Option(help="What `run` wrote.")],
    figure: Annotated[Path, typer.Option(help="The figure, PNG.")],
) -> None:
    """Print a table and draw the figure."""
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    boards = [board for board in BOARDS if any(line["case"][0] == board for line in lines)]
    drawing = Figure(figsize=(9.5, 5.6), layout="constrained")
    cells = drawing.subplots(2, 3, sharey=True).flat
    typer.echo("| classifier | attack | budget | evaluations | standing |\n| --- | --- | ---: | ---: | ---: |")
    for axes, board in zip(cells, boards, strict=False):
        for (attack, name), marker in zip(ATTACKS.items(), "osD^v", strict=True):
            own = sorted((one for one in lines if one["case"][:2] == [board, attack]), key=lambda one: one["case"][2])
            share = [100 * (one["right"] - one["broken"]) / one["case"][3] for one in own]
            axes.plot([one["evaluations"] for one in own], share, marker=marker, markersize=5, label=name)
            for each, standing in zip(own, share, strict=True):
                spent = f"{each['evaluations']:,.0f}"
                typer.echo(f"| {BOARDS[board]} | {name} | {each['case'][2]:,} | {spent} | {standing:.0f} |")
        some = next(line for line in lines if line["case"][0] == board)
        axes.axhline(100 * some["certified"] / some["case"][3], color="black", linestyle="--", label="certified")
        axes.set(title=BOARDS[board], xlabel="evaluations an image attacked", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    drawing.supylabel("right under attack, %")
    for axes in drawing.axes[len(boards) :]:
        axes.set_axis_off()
    drawing.axes[-1].legend(*drawing.axes[0].get_legend_handles_labels(), loc="center")
    drawing.savefig(figure, dpi=110)


if __name__ == "__main__":
    app()

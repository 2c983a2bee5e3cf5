"""python benchmarks/imagenet.py: what certifying an image of 224×224 costs, and how the cost grows with the image.

Each case runs in a process of its own, on one thread, and tells the seconds of CPU that an image took (unlike those on
the clock they hardly depend on what else the machine does) and the most memory that the process ever held.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from robustpatch import (
    ComplementChannels,
    PatchThreat,
    SmoothedClassifier,
    TopOne,
    Votes,
    certify_votes,
    parse_ablation,
    wrap,
)
from robustpatch.data.images import load_images
from robustpatch.networks import build, one_pass_name
from robustpatch.networks.vit import TokenDropViT

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
THREAT = PatchThreat(32, 32)  # 2% of 224×224
NAMES = {"vit": "timm:vit_tiny_patch16_224", "resnet50": "torchvision:resnet50"}
SIZED = [  # model, how, ablation, images
    *(("vit", "tokens dropped", ablation, 250) for ablation in ("columns:19/10", "columns:19", "blocks:75/10")),
    ("vit", "tokens dropped", "columns:19/10", 10),
    ("vit", "all tokens, one after another", "columns:19/10", 10),
    ("vit", "tokens dropped", "columns:19", 1),
    ("vit", "all tokens, one after another", "columns:19", 1),
    ("resnet50", "13 at once", "columns:19/10", 5),
    ("resnet50", "one after another", "columns:19/10", 5),
    ("resnet50", "13 at once", "columns:19", 1),
    ("resnet50", "13 at once", "blocks:75/20", 1),
    ("resnet50", "13 at once, bfloat16", "columns:19/10", 250),
    ("resnet50", "13 at once, bfloat16", "blocks:75/32", 250),
    ("resnet50", "13 at once, bfloat16", "columns:19", 250),
]
GROWTH = [
    *(
        (side, f"columns:{size}", how)
        for side, size in ((28, 2), (32, 4), (224, 19))
        for how in ("enumerated", "one pass")
    ),
    *((side, f"blocks:{size}", how) for side, size in ((28, 8), (32, 12)) for how in ("enumerated", "one pass")),
]


def cost(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of CPU and on the clock, and the load around it."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    load = os.getloadavg()[0]
    return {"cpu": time.process_time() - cpu, "clock": time.perf_counter() - clock, "load": load}


@torch.no_grad()
def defended(
    name: str, ablation: str, images: Tensor, dropping: bool, chunk: int | None, dtype: torch.dtype = torch.float32
) -> SmoothedClassifier:
    """Untrained weights of seed 0, the head scaled so that bands of real images differ in their votes."""
    torch.manual_seed(0)
    model = wrap(NAMES[name], parse_ablation(ablation), voting=TopOne(), chunk=chunk)
    if isinstance(model.base, TokenDropViT):
        model.base.vit.get_submodule("head").weight.mul_(30)  # type: ignore[operator]
        if not dropping:
            base = model.base.vit
            model = SmoothedClassifier(base, model.ablation, num_classes=1000, voting=TopOne(), chunk=chunk).eval()
    model.requires_grad_(False).to(dtype)
    model.votes(images[:1])  # warm
    return model


def sized(row: int, root: Path) -> dict[str, Any]:
    """One row of `SIZED`: votes and certificate, one image at a time, after the first call's check of the base."""
    name, how, ablation, count = SIZED[row]
    alone = "after another" in how
    data = load_images("folder", root, image_size=(224, 224))
    images = data.batch(range(count))[0]
    dtype = torch.bfloat16 if "bfloat16" in how else torch.float32
    model = defended(name, ablation, images, "dropped" in how, 1 if alone else None, dtype)
    note = cost(lambda: [certify_votes(model.votes(x[None]), model.ablation, THREAT, (224, 224)) for x in images])
    n = model.ablation.count(224, 224)
    return {"model": name, "how": how, "ablation": ablation, "n": n, "images": count, **note}


def growth(row: int, root: Path) -> dict[str, Any]:
    """One row of `GROWTH`: the usual network by enumeration, or the one-pass network of the ablation."""
    side, text, how = GROWTH[row]
    ablation = parse_ablation(text)
    torch.manual_seed(0)
    colours = 1 if side == 28 else 3
    plain = how == "enumerated"
    options: dict[str, Any] = {"widths": [32, 64] if side < 99 else [32, 64, 64, 64, 64]} if plain else {}
    base = build(
        "small-cnn" if plain else one_pass_name(ablation),
        ablation=ablation,
        image_shape=(colours, side, side),
        num_classes=10,
        encoding=ComplementChannels(),
        options=options,
    )
    model = SmoothedClassifier(base, ablation, num_classes=10, voting=TopOne()).eval().requires_grad_(False)
    count = 2 if side == 224 else 50
    x = torch.rand(count, colours, side, side)
    model.scores(x[:1])
    note = cost(lambda: model.votes(x))
    return {"side": side, "ablation": text, "how": how, "n": ablation.count(side, side), "images": count, **note}


def share(_: int, root: Path) -> dict[str, Any]:
    """The exact certificate of 50,176 blocks of 75×75 and 1,000 classes, from votes, and what scoring them costs:
    ViT-Tiny on 512 of them, times 98.
    """
    ablation, n = parse_ablation("blocks:75"), 224 * 224
    images = load_images("folder", root, image_size=(224, 224)).batch([0])[0]
    model = defended("vit", "blocks:75/10", images, dropping=True, chunk=None)
    assert isinstance(model.base, TokenDropViT)
    whole = SmoothedClassifier(
        TokenDropViT(model.base.vit, ablation), ablation, num_classes=1000, voting=TopOne()
    ).eval()
    some = torch.arange(0, n, n // 512)[:512]
    scoring = cost(lambda: whole.votes(images, some))["cpu"] * n / 512
    few = torch.nn.functional.one_hot(torch.arange(n) % 10 % 7, 1000).bool()[None]
    every = torch.nn.functional.one_hot(torch.randint(0, 1000, (n,)), 1000).bool()[None]
    found = {}
    for name, cast in (("7 classes voted for", few), ("all 1,000 classes voted for", every)):
        votes = Votes(cast, torch.zeros_like(cast))
        found[name] = cost(lambda votes=votes: certify_votes(votes, ablation, THREAT, (224, 224)))["cpu"]
    return {"n": n, "scoring": scoring, "certificate": found, "load": os.getloadavg()[0]}


KINDS = {"sized": (sized, len(SIZED)), "growth": (growth, len(GROWTH)), "share": (share, 1)}


@app.command()
def case(kind: str, row: int, data_root: Path) -> None:
    """Run one case in this process; a line of JSON."""
    torch.set_num_threads(1)
    result = KINDS[kind][0](row, data_root)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    typer.echo(json.dumps({"kind": kind, "row": row, **result, "gib": peak}))


@app.command()
def run(
    data_root: Annotated[Path, typer.Option(help="Folder with a folder of images.")],
    output: Annotated[Path, typer.Option(help="Lines of JSON; cases in it are not run again.")],
) -> None:
    """Run every case that `output` does not hold yet."""
    output.touch()
    done = {(line["kind"], line["row"]) for line in map(json.loads, output.read_text().splitlines())}
    for kind, (_, rows) in KINDS.items():
        for row in range(rows):
            if (kind, row) not in done:
                command = [sys.executable, __file__, "case", kind, str(row), str(data_root)]
                text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                with output.open("a") as file:
                    file.write(text.splitlines()[-1] + "\n")
                typer.echo(text, nl=False)


@app.command()
def report(
    output: Annotated[Path, typer.Option(help="What `run` wrote.")],
    figure: Annotated[Path, typer.Option(help="The figure, PNG.")],
) -> None:
    """Print the tables and draw the figure."""
    lines = sorted(map(json.loads, output.read_text().splitlines()), key=lambda line: line["row"])
    each = {line["row"]: line["cpu"] / line["images"] for line in lines if line["kind"] == "sized"}
    typer.echo("| | ablations | images | CPU s an image | images/s | peak memory | load |")
    typer.echo("| --- | --- | --- | --- | --- | --- | --- |")
    for line in (line for line in lines if line["kind"] == "sized"):
        second = each[line["row"]]
        typer.echo(
            f"| {line['model']}, {line['how']} | {line['ablation']}: {line['n']} | {line['images']} | {second:.2f} | "
            f"{1 / second:.3g} | {line['gib']:.2f} GiB | {line['load']:.0f} |"
        )
    grown = [line for line in lines if line["kind"] == "growth"]
    seconds = {(line["side"], line["ablation"], line["how"]): line["cpu"] / line["images"] for line in grown}
    typer.echo("\n| ablations | image | enumerated | one pass | ratio |\n| --- | --- | --- | --- | --- |")
    for line in (line for line in grown if line["how"] == "one pass"):
        side, text = line["side"], line["ablation"]
        a, b = seconds[side, text, "enumerated"], seconds[side, text, "one pass"]
        typer.echo(f"| {line['n']} {text} | {side}×{side} | {a:.4f} | {b:.4f} | {a / b:.1f} |")
    for line in (line for line in lines if line["kind"] == "share"):
        for name, seconds in line["certificate"].items():
            typer.echo(f"\n{line['n']:,} blocks, {name}: certificate {seconds:.2f} s, scoring {line['scoring']:.0f} s")
    drawing = Figure(figsize=(6, 3.6), layout="constrained")
    axes = drawing.subplots()
    for kind, marker in (("columns", "o"), ("blocks", "s")):
        for how, colour in (("enumerated", "tab:red"), ("one pass", "tab:blue")):
            some = [line for line in grown if line["how"] == how and line["ablation"].startswith(kind)]
            points = [(line["n"], line["cpu"] / line["images"]) for line in some]
            axes.loglog(*zip(*points, strict=True), marker=marker, color=colour, label=f"{kind}, {how}")
    axes.set(xlabel="ablations of an image, N", ylabel="CPU seconds an image")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    drawing.savefig(figure, dpi=110)


if __name__ == "__main__":
    app()

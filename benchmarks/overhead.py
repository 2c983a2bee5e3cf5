"""python benchmarks/overhead.py: what a run without attacks costs beside scoring the same views and nothing else.

Each is a process of its own on one thread; compared are their seconds of CPU, which hardly depend on what else the
machine does, with the start of Python and without.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer

from robustpatch import SmoothedClassifier
from robustpatch.data.images import load_images

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def bare(checkpoint: str, data_root: Path, images: int, batch: int) -> None:
    """Score all views of the images; the seconds of CPU until then, and of scoring."""
    torch.set_num_threads(1)
    model = SmoothedClassifier.from_pretrained(checkpoint).requires_grad_(False)
    data = load_images("mnist", data_root)
    started = time.process_time()
    with torch.no_grad():
        for first in range(0, images, batch):
            model.logits(data.batch(range(first, min(first + batch, images)))[0])
    typer.echo(json.dumps({"start": started, "scoring": time.process_time() - started}))


@app.command()
def run(
    data_root: Annotated[Path, typer.Option(help="Folder with MNIST.")],
    checkpoint: Annotated[str, typer.Option()] = "mnist-columns2",
    images: Annotated[int, typer.Option()] = 10_000,
    batch: Annotated[int, typer.Option()] = 500,
) -> None:
    """Both, one after the other."""
    numbers = [str(images), str(batch)]
    alone, text = _seconds([__file__, "bare", checkpoint, str(data_root), *numbers])
    with TemporaryDirectory() as folder:
        command = ["-m", "evaluate.attack_vs_cert", "--checkpoint", checkpoint, "--dataset", "mnist", "--quiet"]
        command += ["--data-root", str(data_root), "--num-images", numbers[0], "--batch-size", numbers[1]]
        whole, _ = _seconds([*command, "--attacks", "none", "--output", f"{folder}/run"])
    scoring = json.loads(text)["scoring"]
    found = {"bare": alone, "scoring": scoring, "run": whole, "run/bare": whole / alone}
    typer.echo(json.dumps({**found, "more, of scoring": (whole - alone) / scoring}))


def _seconds(arguments: list[str]) -> tuple[float, str]:
    """The seconds of CPU that Python took for this, and what it printed last."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout.splitlines()[-1]


if __name__ == "__main__":
    app()

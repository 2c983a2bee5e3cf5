"""python -m evaluate.sweep: tables over ablation sizes, voting rules and patch sizes from one scoring of each image."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from fnmatch import fnmatch
from glob import glob
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from evaluate.cli.command import HELD, check_dtype, check_fit, check_number, circumstances, showing, takes
from evaluate.results.metrics import as_json
from evaluate.results.published import published
from evaluate.runs.output import place_of
from evaluate.sweep.figures import draw
from evaluate.sweep.metrics import Choice, choice_by, settings_of
from evaluate.sweep.records import read_sweep
from evaluate.sweep.runner import SweepSettings, sweep
from evaluate.sweep.table import markdown
from robustpatch.checkpoints import Checkpoint, load_checkpoint, names
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.data.images import DataOptions, ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.options import options as checked
from robustpatch.precision import check_device
from robustpatch.threats.parse import parse_threat
from robustpatch.voting.rules import Threshold, TopOne, Voting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@checked
class SweepOptions(DataOptions):
    """The options of a sweep, in the order of the command line."""

    checkpoints: Annotated[list[str], typer.Argument(help="Shipped checkpoints' names, files, or patterns of either.")]
    split: Annotated[str, typer.Option(help="test, or validation: every choice is made there.")] = "test"
    theta: Annotated[str, typer.Option(help="Vote thresholds, separated by commas; or none.")] = "0.2,0.3,0.4"
    top1: Annotated[bool, typer.Option(help="Top-1 votes, too.")] = False
    top_k: Annotated[
        str, typer.Option(help="Certify, too, that the label is among the k most voted: 1,3,5; or none.")
    ] = "none"
    guard: Annotated[shared.Guard | None, "by precision"] = None
    patch: Annotated[shared.Patches | None, "5x5; give it again for another one"] = None
    num_images: shared.NumImages = 0
    batch_size: shared.BatchSize = 500
    device: shared.Device = "cpu"
    dtype: shared.Precision = "float32"
    choose_by: Annotated[Path | None, typer.Option(help="Output of a validation sweep that makes the choices.")] = None
    output: Annotated[
        str | None,
        typer.Option(help="Folder of rows, table and pictures; a killed run is resumed. Default: runs/NAME."),
    ] = None


@app.command(cls=Command)
@takes
def main(options: SweepOptions, errors: Console) -> int:
    """Certify all images with each checkpoint under each voting rule, against each patch and squares of every side.

    Every image is scored once by each checkpoint. Exit status 0: done. 2: wrong call. 3: internal error.
    """
    started, split = time.monotonic(), options.split
    around = circumstances(check_device(options.device))
    if split not in ("test", "validation"):
        raise InvalidInput(f"split is {split!r}; use test or validation")
    images = options.load(split)
    settings = SweepSettings(
        votings=_votings(options.theta, options.top1),
        patches=tuple(parse_threat(one, images.image_shape[1:]) for one in options.patch or ["5x5"]),
        num_images=options.num_images or len(images),
        batch_size=options.batch_size,
        device=options.device,
        top_k=_numbers(options.top_k),
    )
    check_number(settings.num_images, images)
    loaded = _load(options, images)
    choice = None if options.choose_by is None else _choice(options.choose_by, loaded, settings, split)
    output = options.output
    if output is None:
        files = {name: one.sha256 for name, one in loaded.items()}
        what = json.dumps([options.dataset, split, files, str(settings), options.guard, options.dtype])
        output = f"runs/sweep-{options.dataset}-{split}-{sha256(what.encode()).hexdigest()[:8]}"
    store = place_of(output)
    with showing(errors, len(loaded) * settings.num_images, notes=images.notes) as on_progress:
        about = {"dtype": options.dtype}
        run = sweep(loaded, images, settings, store, configuration=about, on_progress=on_progress)
    found = settings_of(run)
    if split == "validation":
        choice = Choice({setting.key: setting for setting in found}, "these validation images")
    text = markdown(run, found, choice)
    store.write("table.md", text.encode())
    pictures = draw(run, found, choice, store)
    patches = run.configuration["patches"]
    paper = [
        published(options.dataset, setting.ablation, setting.voting, patch) for setting in found for patch in patches
    ]
    content = json.dumps(
        {
            "settings": [setting.as_dict() for setting in found],
            "choices": None if choice is None else choice.as_dict(found, patches),
            "paper": as_json([entry for entry in dict.fromkeys(paper) if entry is not None]),
            "seconds_of_checkpoints": run.seconds,
            "float32_deviations": run.float32_deviations,
            "seconds": time.monotonic() - started,
            "configuration": run.configuration,
            **around,
        },
        indent=1,
    )
    store.write("summary.json", content.encode())
    console = TextConsole()
    console.print(text, soft_wrap=True, end="")
    drawn = ", ".join(pictures)
    console.print(f"\nrows, table.md, summary.json and pictures ({drawn}; and SVG) in {output}", soft_wrap=True)
    return HELD


def _votings(theta: str, top1: bool) -> tuple[Voting, ...]:
    votings: list[Voting] = []
    for part in () if theta.strip().lower() == "none" else theta.split(","):
        try:
            votings.append(Threshold(float(part)))
        except ValueError as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"theta is {theta!r}; use thresholds separated by commas, 0.2,0.3, or none") from error
    return (*votings, TopOne()) if top1 else tuple(votings)


def _numbers(top_k: str) -> tuple[int, ...]:
    try:
        return () if top_k.strip().lower() == "none" else tuple(int(part) for part in top_k.split(","))
    except ValueError as error:
        raise InvalidInput(f"top_k is {top_k!r}; use whole numbers separated by commas, 1,3,5, or none") from error


def _load(options: SweepOptions, images: ImageSet) -> dict[str, Checkpoint]:
    """All checkpoints by a name each, smoothed ones for these images; refused before any is used."""
    precision, guard = check_dtype(options.dtype), options.guard
    paths: list[str] = []
    for text in options.checkpoints:
        found = [name for name in names() if fnmatch(name, text)] or sorted(glob(os.path.expanduser(text)))
        paths += found or [text]  # a missing file is refused by its own name
    loaded: dict[str, Checkpoint] = {}
    for text in paths:
        checkpoint = load_checkpoint(text)
        name = text if text in names() else checkpoint.name
        if name == "checkpoint":  # as training names every one: its folder tells them apart
            name = checkpoint.path.resolve().parent.name or name
        check_fit(name, checkpoint, images, named=options.classes is not None)
        if any(checkpoint.sha256 == other.sha256 for other in loaded.values()):
            raise InvalidInput(f"checkpoints names {text} twice; drop one")
        model = checkpoint.smoothed.to(precision).requires_grad_(False)
        if guard is not None:
            model.voting = model.voting.with_guard(guard)
        loaded[f"{name}-{checkpoint.sha256[:8]}" if name in loaded else name] = replace(checkpoint, model=model)
    return loaded


def _choice(folder: Path, loaded: dict[str, Checkpoint], settings: SweepSettings, split: str) -> Choice:
    if split == "validation":
        raise InvalidInput(f"choose_by is {folder}, but validation images choose for themselves; drop it")
    wanted = {
        (checkpoint.sha256, str(voting)): f"{name}, {voting}"
        for name, checkpoint in loaded.items()
        for voting in settings.votings
    }
    return choice_by(read_sweep(folder), wanted, [str(patch) for patch in settings.patches])


if __name__ == "__main__":
    app()

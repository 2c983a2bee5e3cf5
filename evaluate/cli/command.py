"""Parts that the command lines share: exit statuses, refusals, progress, and the circumstances noted in a summary."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from typing import Any, TypeVar

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustpatch.checkpoints import Checkpoint
from robustpatch.cli.arguments import takes
from robustpatch.cli.command_line import WRONG_CALL, Command, refused
from robustpatch.cli.shared import PRECISIONS
from robustpatch.cli.status import BROKEN, HELD, INTERNAL, INTERRUPTED, status_of
from robustpatch.cli.text import one_line
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput

__all__ = [
    "BROKEN",
    "HELD",
    "INTERNAL",
    "INTERRUPTED",
    "WRONG_CALL",
    "refused",
    "status_of",
    "takes",
]  # for the commands here
T = TypeVar("T")
Shown = Callable[[int, str], None]
LINE_EVERY = 30.0  # seconds between lines of progress where no bar can move
LOCAL_RAY = "local"  # what --ray says without an address
PACKAGES = ("robustpatch", "torch", "torchvision", "numpy", "kornia", "adversarial-robustness-toolbox", "pyarrow")


def refusing(read: Callable[[], T]) -> T:
    """Calls `read`; where that raises `InvalidInput`, prints the line and ends with the status of a wrong call."""
    try:
        return read()
    except InvalidInput as error:
        refused(error)
        raise typer.Exit(WRONG_CALL) from error


class RayCommand(Command):
    """A command whose --ray may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        following = [*args[1:], "--"]
        alone = f"--ray={LOCAL_RAY}"
        given = zip(args, following, strict=False)
        return super().parse_args(ctx, [alone if one == "--ray" and after[:1] == "-" else one for one, after in given])


def check_dtype(name: str) -> torch.dtype:
    """The precision of that name. Raises `InvalidInput`."""
    if name not in PRECISIONS:
        raise InvalidInput(f"dtype is {name!r}; use one of {', '.join(PRECISIONS)}")
    return getattr(torch, name)


def check_fit(name: str, checkpoint: Checkpoint, images: ImageSet, *, named: bool = False) -> None:
    """Refuse a checkpoint, called `name`, for images of another shape or of other classes: of another number, name or
    order. Where the user has `named` them, in the order of the outputs, names may differ.
    """
    shape, classes = tuple(checkpoint.config["image_shape"]), len(checkpoint.config["class_names"])
    if shape != images.image_shape or len(images.class_names) != classes:
        remedy = "name a checkpoint for this dataset"
        if images.name == "folder" and shape[0] == images.image_shape[0]:
            remedy = f"bring the images to it with --image-size {shape[1]}x{shape[2]}, or {remedy}"
        raise InvalidInput(
            f"dataset {images.name} has {images.image_shape} images of {len(images.class_names)} classes, but "
            f"checkpoint {name} was trained for {shape} and {classes}; {remedy}"
        )
    if not named and list(images.class_names) != list(checkpoint.config["class_names"]):
        own, trained = (
            ", ".join(some[:5]) + ", …" * (len(some) > 5)
            for some in (images.class_names, checkpoint.config["class_names"])
        )
        raise InvalidInput(
            f"dataset {images.name} has the classes {own}, but checkpoint {name} answers {trained}, in this order; "
            "name the folders so, or name them in the order of the answers with --classes"
        )


def check_number(num_images: int, images: ImageSet) -> None:
    """Refuse more images than there are."""
    if num_images > len(images):
        raise InvalidInput(
            f"num_images is {num_images}, but {images.name} has {len(images)} {images.split} images; take at most those"
        )


def circumstances(device: str) -> dict[str, Any]:
    """The command, the versions of what it leans on, and the machine."""
    return {
        "command": shlex.join(sys.argv),
        "versions": {name: version(name) for name in PACKAGES},
        "python": sys.version,
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def progress_bar(console: Console) -> Progress:
    """A bar that names the work and shows its progress, the time it has taken, and the time it may still take."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def time_left(done: int, left: int, seconds: float) -> str:
    """Tell how long the rest may take, by what was done in so many seconds; nothing where that says little."""
    if done < 1 or left < 1 or seconds < LINE_EVERY:
        return ""
    rest = seconds * left / done
    return f", about {rest / 60:,.0f} minutes left" if rest > 90 else f", about {rest:.0f} seconds left"


@contextmanager
def showing(
    console: Console, total: int, *, plain: bool = False, quiet: bool = False, notes: Sequence[str] = ()
) -> Iterator[Shown]:
    """A callback for how far work is and what is done: a bar on a terminal, lines elsewhere or if `plain`.

    Nothing is shown before the first call: an error stands alone. Then the `notes` that there are by then come first,
    a line each, also if `quiet`. Lines come when a number changes, and every half
    minute; once they do, they say how long the rest may take.
    """
    noted = 0

    def note() -> None:
        nonlocal noted
        while noted < len(notes):
            noted += 1
            console.print(notes[noted - 1], soft_wrap=True)

    if quiet:
        yield lambda *_: note()
        return
    if plain or not console.is_terminal:
        last, begun = (-1, 0.0), (0, 0.0)

        def line(finished: int, what: str) -> None:
            nonlocal last, begun
            note()
            now = time.monotonic()
            begun = (finished, now) if last[0] < 0 else begun  # of a run taken up, where it was left
            if finished != last[0] or now - last[1] > LINE_EVERY:
                last = (finished, now)
                left = time_left(finished - begun[0], total - finished, now - begun[1])
                console.print(f"{finished}/{total} {what}{left}", style=None, soft_wrap=True)

        yield line
        return
    with ExitStack() as started:
        progress = progress_bar(console)
        task = progress.add_task("", total=total)

        def move(finished: int, what: str) -> None:
            note()
            if not progress.live.is_started:
                started.enter_context(progress)
            progress.update(task, completed=finished, description=one_line(what))

        yield move

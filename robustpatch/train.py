"""python -m robustpatch.train: train a base classifier on ablated images, or an undefended one on whole images.

By several processes that share each batch: torchrun --nproc-per-node=2 -m robustpatch.train …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robustpatch.cli import shared
from robustpatch.cli.arguments import takes
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.status import HELD
from robustpatch.data.images import TrainingData
from robustpatch.options import Count, Whole, options
from robustpatch.precision import check_device
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import distributed, train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@options
class Measured:
    """Threads that read the images of a training, and the times at which it measures accuracy."""

    workers: Annotated[Whole, typer.Option(help="Threads that read and decode the images of the next steps.")] = 0
    measure_every: Annotated[
        Count, typer.Option(help="Epochs between two measurements of accuracy on validation images.")
    ] = 1
    measure_images: Annotated[
        Count | None, typer.Option(help="Validation images that are measured, spread evenly; default: all.")
    ] = None


def main(
    config: TrainingConfig,
    data: TrainingData,
    measured: Measured,
    output: Annotated[str, typer.Option(help="Folder for the checkpoint, the history and the state to resume from.")],
    pretrained: Annotated[bool, typer.Option(help="Begin with the library's weights, which it downloads.")] = False,
    device: shared.Device = "cpu",
    resume: Annotated[bool, typer.Option(help="Continue the run in --output.")] = False,
) -> int:
    """Train a base classifier on ablated images, or an undefended one (--ablation none) on whole images.

    Validated on training images held out, never on test images: the last 5,000, of gtsrb every eighth track, of
    imagenette every tenth image, of a folder those of DIR/validation, or a tenth at most. The patch is what
    --certificate and a defense train against, and what certified accuracy is measured for. Under torchrun, --device
    cuda is a GPU for each process.
    """
    check_device(device)
    if pretrained:
        config = replace(config, network={**(config.network or {}), "pretrained": True})
    images, validation = data.load("train"), data.load("validation")
    with distributed.joined(device) as own:
        shown_on = TextConsole(stderr=True, quiet=distributed.rank() > 0)
        with shown(shown_on, len(images) // config.batch_size, notes=images.notes) as callbacks:
            train(config, images, validation, output, resume=resume, device=own, **asdict(measured), **callbacks)
    return HELD


app.command(cls=Command)(takes(main, interrupted="interrupted; the finished epochs are kept, continue with --resume"))


@contextmanager
def shown(
    console: Console, steps: int, title: str | None = None, notes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Callbacks for `train` that show its progress through epochs of so many steps, under a `title` and after
    `notes` on the images, from the first one on: a call that is refused is refused in one line.
    """
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console)
    task = progress.add_task("", total=steps, epoch=1, loss=float("nan"))
    with ExitStack() as started:

        def on_epoch(row: dict[str, Any]) -> None:
            text = "epoch {epoch}: loss {loss:.4f}, "
            text += "validation clean {clean:.2%}, " if row["clean"] is not None else ""
            if row["certified_margin"] is not None:
                text += "certified {certified_margin:.2%} (margin) {certified_exact:.2%} (exact), "
            elif row["certified_exact"] is not None:
                text += "certified {certified_exact:.2%}, "
            text += "{certifiable:.2%} certifiable, base {base:.2%}, " if row["certifiable"] is not None else ""
            text += "off float32 by {float32_deviation:.2g}, " if row.get("float32_deviation") is not None else ""
            progress.console.print((text + "{seconds:.0f} s").format(**row), soft_wrap=True)

        def on_step(epoch: int, step: int, loss: float) -> None:
            if not progress.live.is_started:
                for note in notes:
                    console.print(note, soft_wrap=True)
                if title is not None:
                    console.rule(title)
                started.enter_context(progress)
            progress.update(task, completed=step + 1, epoch=epoch + 1, loss=loss)

        yield {"on_epoch": on_epoch, "on_step": on_step}


if __name__ == "__main__":
    app()

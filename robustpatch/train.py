"""python -m robustpatch.train: train a base classifier on ablated images, or an undefended one on whole images.

By several processes that share each batch: torchrun --nproc-per-node=2 -m robustpatch.train …
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robustpatch.ablations.parse import parse_source
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.status import HELD, status_of
from robustpatch.data.images import ImageSet, named_images
from robustpatch.networks import usual_name
from robustpatch.precision import check_device
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import distributed, train

ImageSize = Annotated[
    str | None, typer.Option(help="Bring the images of a folder to one size, cropped in the middle: 224 or 224x320.")
]
Channels = Annotated[int, typer.Option(help="Of a folder: 3, colour, or 1, grey.")]
Classes = Annotated[
    str | None,
    typer.Option(help="Names of a folder's classes in the order of the outputs: a file with one a line, or a,b,c."),
]
SkipBroken = Annotated[bool, typer.Option("--skip-broken", help="Leave out a folder's files that cannot be used.")]

MeasureEvery = Annotated[int, typer.Option(help="Epochs between two measurements of accuracy on validation images.")]
MeasureImages = Annotated[
    int | None, typer.Option(help="Validation images that are measured, spread evenly; default: all.")
]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
_DEFAULT = TrainingConfig()


@app.command(cls=Command)
def main(
    output: Annotated[str, typer.Option(help="Folder for the checkpoint, the history and the state to resume from.")],
    dataset: Annotated[str, typer.Option(help="mnist, cifar10 or folder.")] = "mnist",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data; default $ROBUSTPATCH_DATA.")] = None,
    image_size: ImageSize = None,
    channels: Channels = 3,
    classes: Classes = None,
    skip_broken: SkipBroken = False,
    ablation: Annotated[
        str | None,
        typer.Option(
            help="columns:2, the default, rows:3, blocks:8; with a stride: columns:19/10; choices of cells of a grid: "
            "2*grid-columns:1, 2*grid-blocks:4; several: columns:2+rows:2; pixels at random: sparse:5; none."
        ),
    ] = None,
    defense: Annotated[
        str | None,
        typer.Option(help="Another defense around the network, NAME or NAME:OPTION=VALUE,…; by itself no ablation."),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="strip (bands), block (blocks) or grid (cells of a grid), which score all ablations in one pass; "
            "residual-strip, band and conv-block, deeper ones; mlp (pixels at random), mnist-cnn and resnet18 (the "
            "paper's) or small-cnn (a usual one); vit, resnet50, torchvision:NAME, timm:NAME. Default: the ablation's "
            "own."
        ),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with the library's weights, which it downloads.")
    ] = False,
    encoding: Annotated[str, typer.Option(help="How hidden pixels are shown: complement or mask.")] = _DEFAULT.encoding,
    voting: Annotated[
        str, typer.Option(help="threshold:0.3, top1, scores, tanh:0.05:1, relu:16 or sigmoid:0.5.")
    ] = _DEFAULT.voting,
    patch: Annotated[
        str,
        typer.Option(help="What --certificate and a defense train against, and certified accuracy is measured for."),
    ] = _DEFAULT.patch,
    epochs: int = _DEFAULT.epochs,
    batch_size: int = _DEFAULT.batch_size,
    optimizer: Annotated[str, typer.Option(help="sgd (Nesterov momentum) or adamw.")] = _DEFAULT.optimizer,
    lr: Annotated[float, typer.Option(help="Peak of the one-cycle learning rate.")] = _DEFAULT.lr,
    momentum: Annotated[
        float, typer.Option(help="Middle of the momentum's cycle, which falls while the rate rises.")
    ] = _DEFAULT.momentum,
    weight_decay: float = _DEFAULT.weight_decay,
    ablations: Annotated[
        int, typer.Option(help="Ablations of each image in a step; 0: all in one pass, else one.")
    ] = _DEFAULT.ablations,
    certificate: Annotated[
        float, typer.Option(help="Weight of the certificate's own loss beside cross-entropy; 0: none.")
    ] = _DEFAULT.certificate,
    clean: Annotated[
        float, typer.Option(help="Weight of the clean prediction within the certificate's loss.")
    ] = _DEFAULT.clean,
    cast: Annotated[
        bool, typer.Option("--cast", help="Count votes in the certificate's loss as cast, 0 or 1, not as soft ones.")
    ] = _DEFAULT.cast,
    local: Annotated[
        float, typer.Option(help="Weight of the ablations' cross-entropy beside the certificate's loss.")
    ] = _DEFAULT.local,
    crop: Annotated[
        int, typer.Option(help="Move each training image by up to so many pixels in either direction.")
    ] = _DEFAULT.crop,
    flip: Annotated[bool, typer.Option(help="Mirror training images left to right at random.")] = _DEFAULT.flip,
    zoom: Annotated[
        float, typer.Option(help="Show a part of each training image at full size, at least so much of its area.")
    ] = _DEFAULT.zoom,
    teacher: Annotated[
        str | None, typer.Option(help="Learn from the scores of this checkpoint, too, of the same ablation.")
    ] = _DEFAULT.teacher,
    start: Annotated[str | None, typer.Option(help="Begin with the weights of this checkpoint.")] = _DEFAULT.start,
    only: Annotated[
        str | None, typer.Option(help="Train the weights under this name alone, such as head; all others stay.")
    ] = _DEFAULT.only,
    bfloat16: Annotated[bool, typer.Option(help="Train under bfloat16 autocast.")] = _DEFAULT.bfloat16,
    seed: int = _DEFAULT.seed,
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun, cuda is a GPU for each process.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Threads that read and decode the images of the next steps.")] = 0,
    measure_every: MeasureEvery = 1,
    measure_images: MeasureImages = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")] = False,
) -> None:
    """Train a base classifier on ablated images, or an undefended one (--ablation none) on whole images.

    Validated on the last 5,000 training images (of a folder, on a tenth of them at most), never on test images.
    """

    def run(_: Console) -> int:
        check_device(device)
        default = str(_DEFAULT.ablation) if defense is None else "none"
        given = default if ablation is None else ablation
        config = TrainingConfig(
            ablation=None if given == "none" else given,
            defense=defense,
            network={"name": network or _network(given), **({"pretrained": True} if pretrained else {})},
            voting=voting,
            encoding=encoding,
            patch=patch,
            epochs=epochs,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            ablations=ablations,
            certificate=certificate,
            clean=clean,
            cast=cast,
            local=local,
            crop=crop,
            flip=flip,
            zoom=zoom,
            teacher=teacher,
            start=start,
            only=only,
            bfloat16=bfloat16,
            seed=seed,
        )
        images, validation = read_images(
            dataset, data_root, image_size=image_size, channels=channels, classes=classes, skip_broken=skip_broken
        )
        with distributed.joined(device) as own:
            shown_on = TextConsole(stderr=True, quiet=distributed.rank() > 0)
            with shown(shown_on, len(images) // batch_size, notes=images.notes) as callbacks:
                train(
                    config,
                    images,
                    validation,
                    output,
                    resume=resume,
                    device=own,
                    workers=workers,
                    measure_every=measure_every,
                    measure_images=measure_images,
                    **callbacks,
                )
        return HELD

    raise typer.Exit(status_of(run, "interrupted; the finished epochs are kept, continue with --resume"))


def read_images(dataset: str, data_root: Path | None, **options: Any) -> tuple[ImageSet, ImageSet]:
    """Training and validation images, by the options of `named_images`."""
    images, validation = (named_images(dataset, data_root, split, **options) for split in ("train", "validation"))
    return images, validation


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


def _network(ablation: str) -> str:
    return "small-cnn" if ablation == "none" else usual_name(parse_source(ablation))


if __name__ == "__main__":
    app()

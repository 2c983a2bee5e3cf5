"""python -m evaluate.audit MODULE:OBJECT: try to break somebody else's certificates."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from evaluate.audit.calling import CTRL_C, asked_for, explaining, interruptible, named
from evaluate.audit.finding import Audit
from evaluate.audit.limit import Limit
from evaluate.audit.report import markdown, table
from evaluate.audit.reproduce import again, load, replay
from evaluate.audit.run import audit
from evaluate.cli.command import BROKEN, HELD, INTERRUPTED, circumstances, status_of
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.text import one_line
from robustpatch.data.images import ImageSet, named_images
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.parse import parse_threat
from robustpatch.train import Channels, ImageSize, SkipBroken

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
def main(
    target: Annotated[
        str | None,
        typer.Argument(
            help="MODULE:OBJECT or FILE.py:OBJECT with predict(x) and certify(x, threat), or a function without "
            "arguments that makes one; or the name of a shipped checkpoint."
        ),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(help="MODULE:make, called as make(base, num_classes, image_shape).")
    ] = None,
    patch: Annotated[str, typer.Option(help="5x5, 2x10, 2%, 2*5x5 (two patches).")] = "5x5",
    images: Annotated[int, typer.Option(help="Images of the data, and as many structured ones.")] = 32,
    dataset: Annotated[
        str | None, typer.Option(help="mnist, cifar10 or folder instead of the packaged sample.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data; default $ROBUSTPATCH_DATA.")] = None,
    image_size: ImageSize = None,
    channels: Channels = 3,
    skip_broken: SkipBroken = False,
    shape: Annotated[str | None, typer.Option(help="Channels, height, width of the images, as 3x32x32.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes; default the certifier's num_classes.")] = None,
    alerts: Annotated[
        bool, typer.Option("--alerts", help="It may answer -1, or its attribute alert, for an attack: no break.")
    ] = False,
    budget: Annotated[int, typer.Option(help="Evaluations of each attack on a certified image.")] = 2_000,
    seed: int = 0,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which it ends with what it has found by then.")
    ] = None,
    output: Annotated[
        str, typer.Option(help="Folder of report and reproducers; those of an earlier audit in it are removed.")
    ] = "runs/audit",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    replay_file: Annotated[
        Path | None, typer.Option("--replay", help="Show a saved finding again, of the target or factory named.")
    ] = None,
) -> None:
    """Attack what is certified, hold predict and certify against each other, and dictate votes through the factory.

    Exit status 0: nothing was found, warnings apart. 1: a certified prediction was changed, or the certifier
    contradicts itself; each finding has a file that shows it again. 2: wrong call, or the certifier raised an error
    where it has to answer: its traceback is shown. 3: internal error. 130: interrupted by Ctrl-C before anything was
    found; what was found by then is shown in any case, and what was not tested. --time-limit ends the same way, with
    status 0 where nothing was found.
    """
    if replay_file is not None:
        raise typer.Exit(status_of(lambda errors: explaining(errors, lambda: _replay(replay_file, target, factory))))

    def load() -> ImageSet | None:
        given = {"image_size": image_size, "channels": channels, "skip_broken": skip_broken}
        return None if dataset is None else named_images(dataset, data_root, **given)

    raise typer.Exit(
        status_of(
            lambda errors: explaining(
                errors,
                lambda: _run(
                    target,
                    factory,
                    patch,
                    images,
                    load,
                    shape,
                    classes,
                    alerts,
                    budget,
                    seed,
                    time_limit,
                    Store(local_folder(output)),
                    as_json,
                    errors,
                ),
            )
        )
    )


def _run(
    target: str | None,
    factory: str | None,
    patch: str,
    images: int,
    load: Callable[[], ImageSet | None],
    shape: str | None,
    classes: int | None,
    alerts: bool,
    budget: int,
    seed: int,
    time_limit: float | None,
    output: Store,
    as_json: bool,
    errors: Console,
) -> int:
    size = None if shape is None else _shape(shape)
    data = load()
    measured = (
        size or (data.image_shape if data is not None else None) or (1, 28 if target else 40, 28 if target else 40)
    )
    threat = parse_threat(patch, measured[1:])
    if images < 1:
        raise InvalidInput(f"images is {images}; it must be at least 1")
    notes = [] if data is None else list(data.notes)
    x = None if data is None else data.batch(range(min(images, len(data))))[0]
    certifier, make = named(target, "target"), named(factory, "factory")
    asked = asked_for(target, factory)
    with ExitStack() as shown:
        shown.enter_context(output.held(alone=True))  # until the report is there, too
        status = shown.enter_context(errors.status("audit"))

        def on_progress(what: str) -> None:
            while notes:  # not before the call is found right: an error stands alone
                errors.print(notes.pop(0), soft_wrap=True)
            status.update(Text(what))

        limit = shown.enter_context(interruptible(Limit(time_limit), errors))
        done = audit(
            certifier,
            factory=make,
            threat=threat,
            x=x,
            image_shape=size,
            num_classes=classes,
            alerts=alerts,
            images=images,
            budget=budget,
            seed=seed,
            output=output,
            asked=asked,
            limit=limit,
            on_progress=on_progress,
        )
        _write(done, output, asked)
    console = TextConsole()
    if as_json:
        console.print(json.dumps(done.as_dict()), soft_wrap=True)
        return _status(done)
    console.print(table(done))
    console.print(f"report.md and audit.json in {Path(output.root).resolve()}", soft_wrap=True)
    for finding in done.findings:
        if finding.path is not None:
            command = f"see it again: {again(finding.path, asked)}"
            console.print(command, soft_wrap=True)
    return _status(done)


def _status(done: Audit) -> int:
    if done.failed:
        return BROKEN
    return INTERRUPTED if done.stopped == CTRL_C else HELD


def _write(done: Audit, output: Store, asked: dict[str, Any]) -> None:
    commands = [again(one.path, asked) for one in done.findings if one.path is not None]
    output.write("report.md", markdown(done, commands).encode())
    output.write("audit.json", json.dumps({**done.as_dict(), **circumstances("cpu")}, indent=1).encode())


def _replay(path: Path, target: str | None, factory: str | None) -> int:
    """Show a finding again with the certifier named; 1 when it still stands. What the file names is not run."""
    _, note = load(path)
    if target is None and factory is None:
        raise InvalidInput(
            f"replay is {path}, but no target and no factory are named, and a file names no code to run; if you trust "
            f"what it says that it was found with: {again(path.resolve(), note)}"
        )
    console = TextConsole()
    said = one_line(f"{note['check']}, {note['severity']}: {note['sentence']}", 10_000)
    console.print(said)
    certifier, make = named(target, "target"), named(factory, "factory")
    if make is None and certifier is not None:
        from evaluate.audit.run import own_factory

        make = own_factory(certifier)
    stands = replay(path, certifier, make)
    console.print("the finding stands" if stands else "the finding does not stand here")
    return BROKEN if stands else HELD


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"shape is {text!r}; give channels, height and width, as 1x28x28")
    channels, height, width = map(int, parts)
    return channels, height, width


if __name__ == "__main__":
    app()

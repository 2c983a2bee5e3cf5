"""python -m evaluate.audit MODULE:OBJECT: try to break somebody else's certificates."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from evaluate.audit.finding import Audit
from evaluate.audit.loading import explaining, load_named, names_from_anywhere
from evaluate.audit.report import markdown, table
from evaluate.audit.reproducer import again, load, replay
from evaluate.audit.run import audit, own_factory
from evaluate.audit.stopping import Limit
from evaluate.cli.command import BROKEN, HELD, INTERRUPTED, circumstances, takes
from evaluate.results.table import Table
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.status import Interrupted
from robustpatch.cli.text import one_line
from robustpatch.data.images import Channels, DataRoot, Dataset, ImageSize, SkipBroken, named_images
from robustpatch.errors import InvalidInput
from robustpatch.options import Count
from robustpatch.options import options as checked
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.parse import parse_threat

CTRL_C = "Ctrl-C"
RUNS = "runs/audit"  # where files go if nothing else is said
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@checked
class AuditOptions:
    """One audit. Fields are the command line's options, in its order."""

    target: Annotated[
        str | None,
        typer.Argument(
            help="MODULE:OBJECT or FILE.py:OBJECT with predict(x) and certify(x, threat), or a function without "
            "arguments that makes one; or the name of a shipped checkpoint."
        ),
    ] = None
    factory: Annotated[
        str | None, typer.Option(help="MODULE:make, called as make(base, num_classes, image_shape).")
    ] = None
    patch: shared.Patch = "5x5"
    images: Annotated[Count, typer.Option(help="Images of the data, and as many structured ones.")] = 32
    dataset: Annotated[Dataset | None, "mnist-sample where it has the target's shape"] = None
    data_root: Annotated[DataRoot | None, "$ROBUSTPATCH_DATA"] = None
    image_size: ImageSize | None = None
    channels: Channels = 3
    skip_broken: SkipBroken = False
    shape: Annotated[str | None, typer.Option(help="Channels, height, width of the images, as 3x32x32.")] = None
    classes: Annotated[int | None, typer.Option(help="Number of classes."), "the certifier's num_classes"] = None
    alerts: Annotated[bool, typer.Option(help="It may answer -1, or its attribute alert, for an attack: no break.")] = (
        False
    )
    budget: shared.Budget = 2_000
    seed: shared.Seed = 0
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds after which it ends with what it has found by then.")
    ] = None
    output: Annotated[
        str, typer.Option(help="Folder of report and reproducers; those of an earlier audit in it are removed.")
    ] = RUNS
    json: Annotated[bool, typer.Option(help="Print JSON instead of a table.")] = False
    replay: Annotated[Path | None, typer.Option(help="Show a saved finding again, of the target or factory named.")] = (
        None
    )
    court: Annotated[
        bool, typer.Option(help="Try published certifiers, for --time-limit seconds each (120); see docs/court.md.")
    ] = False
    only: Annotated[
        str | None, typer.Option(help="With --court: only these of its certifiers, separated by commas.")
    ] = None


@app.command(cls=Command)
@takes
def main(options: AuditOptions, errors: Console) -> int:
    """Attack what is certified, hold predict and certify against each other, and dictate votes through the factory.

    Exit status 0: nothing was found, warnings apart. 1: a certified prediction was changed, or the certifier
    contradicts itself; each finding has a file that shows it again. 2: wrong call, or the certifier raised an error
    where it has to answer: its traceback is shown. 3: internal error. 130: interrupted by Ctrl-C before anything was
    found; what was found by then is shown in any case, and what was not tested. --time-limit ends the same way, with
    status 0 where nothing was found.

    --court tries those of robustpatch.evaluate.court, writes court.md, court.html and court.json, and ends with 1 where
    one is broken that has no known fault, or a repaired one.
    """
    if options.court or options.only is not None:
        return _court(options, errors)
    if options.replay is not None:
        path = options.replay
        return explaining(errors, lambda: _replay(path, options.target, options.factory))
    return explaining(errors, lambda: _run(options, errors))


def _run(options: AuditOptions, errors: Console) -> int:
    output = Store(local_folder(options.output))
    size = None if options.shape is None else _shape(options.shape)
    data = None
    if options.dataset is not None:
        given = {"image_size": options.image_size, "channels": options.channels, "skip_broken": options.skip_broken}
        data = named_images(options.dataset, options.data_root, **given)
    side = 28 if options.target else 40
    threat = parse_threat(options.patch, (size or (1, side, side) if data is None else size or data.image_shape)[1:])
    notes = [] if data is None else list(data.notes)
    asked = names_from_anywhere(options.target, options.factory)
    target, factory = load_named(options.target, "target"), load_named(options.factory, "factory")
    with ExitStack() as shown:
        shown.enter_context(output.held(alone=True))  # until the report is there, too
        status = shown.enter_context(errors.status("audit"))

        def on_progress(what: str) -> None:
            while notes:  # not before the call is found right: an error stands alone
                errors.print(notes.pop(0), soft_wrap=True)
            status.update(Text(what))

        done = audit(
            target,
            factory=factory,
            threat=threat,
            x=None if data is None else data.batch(range(min(options.images, len(data))))[0],
            image_shape=size,
            num_classes=options.classes,
            alerts=options.alerts,
            images=options.images,
            budget=options.budget,
            seed=options.seed,
            output=output,
            asked=asked,
            limit=shown.enter_context(_interruptible(Limit(options.time_limit), errors)),
            on_progress=on_progress,
        )
        commands = [again(one.path, asked) for one in done.findings if one.path is not None]
        output.write("report.md", markdown(done, commands).encode())
        output.write("audit.json", json.dumps({**done.as_dict(), **circumstances("cpu")}, indent=1).encode())
    console = TextConsole()
    if options.json:
        console.print(json.dumps(done.as_dict()), soft_wrap=True)
    else:
        console.print(table(done))
        console.print(f"report.md and audit.json in {Path(output.root).resolve()}", soft_wrap=True)
        for command in commands:
            console.print(f"see it again: {command}", soft_wrap=True)
    return _status(done)


def _court(options: AuditOptions, errors: Console) -> int:
    from evaluate.court.page import BRIEF  # a session alone needs them
    from evaluate.court.session import FILES, chosen, hear

    if not options.court:
        raise InvalidInput("only is given without --court, whose certifiers it chooses from; add --court")
    if options.target or options.factory or options.replay:
        raise InvalidInput("court tries certifiers of its own; leave target, --factory and --replay out")
    entries = chosen(options.only)
    output = Store(local_folder("runs/court" if options.output == RUNS else options.output))
    with output.held(alone=True), errors.status("court") as status:
        output.check_writable()
        seconds = 120.0 if options.time_limit is None else options.time_limit
        told = lambda what: status.update(Text(what))  # noqa: E731
        cases = hear(entries, output, seconds, options.budget, options.seed, told)
    console = TextConsole()
    console.print(Table.of(BRIEF, cases).terminal("The court", wrap=True))
    console.print(f"{', '.join(FILES)} in {Path(output.root).resolve()}", soft_wrap=True)
    return BROKEN if any(case.alarm for case in cases) else HELD


def _status(done: Audit) -> int:
    if done.failed:
        return BROKEN
    return INTERRUPTED if done.stopped == CTRL_C else HELD


@contextmanager
def _interruptible(limit: Limit, errors: Console) -> Iterator[Limit]:
    """Ctrl-C ends the audit before the next question to the certifier; a second one at once, with nothing shown."""

    def stop(*_: object) -> None:
        if limit.why == CTRL_C:
            raise Interrupted
        limit.stop(CTRL_C)
        errors.print("stopping when the certifier has answered; Ctrl-C once more ends at once, without a report")

    if threading.current_thread() is not threading.main_thread():
        yield limit
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield limit
    finally:
        signal.signal(signal.SIGINT, before)


def _replay(path: Path, target: str | None, factory: str | None) -> int:
    """Show a finding again with the certifier named; 1 when it is confirmed. No code that the file names is run."""
    _, note = load(path)
    if target is None and factory is None:
        raise InvalidInput(
            f"replay is {path}, but no target and no factory are named, and a file names no code to run; if you trust "
            f"what it says that it was found with: {again(path.resolve(), note)}"
        )
    console = TextConsole()
    console.print(one_line(f"{note['check']}, {note['severity']}: {note['sentence']}", 10_000))
    certifier, make = load_named(target, "target"), load_named(factory, "factory")
    shown = replay(path, certifier, make if certifier is None else make or own_factory(certifier))
    console.print("the finding is confirmed" if shown else "the finding is not confirmed here")
    return BROKEN if shown else HELD


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InvalidInput(f"shape is {text!r}; give channels, height and width, as 1x28x28")
    channels, height, width = map(int, parts)
    return channels, height, width


if __name__ == "__main__":
    app()

"""python -m evaluate.verify BUNDLE: check a safety case; with the model at hand, make some of its evidence again."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

import typer

from evaluate.bundle.sample import Sampled, sample
from evaluate.cli.command import BROKEN, HELD, takes
from evaluate.runs.reloading import options_of
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.shared import MODEL, OUTPUT
from robustpatch.cli.text import one_line, some_of
from robustpatch.data.images import DataRoot
from robustpatch.errors import InvalidInput
from robustpatch.options import Integer, Whole, options
from robustpatch.precision import check_device
from robustpatch.proof.bundle import Checked, check, told

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@options
class VerifyOptions:
    """A bundle, and what is needed to make its evidence again."""

    bundle: Annotated[str, typer.Argument(help="An archive of robustpatch bundle.")]
    sample: Annotated[
        Whole, typer.Option(help="Images whose evidence is made again by the model; 0: none.", rich_help_panel=MODEL)
    ] = 0
    draw: Annotated[
        Integer | None,
        typer.Option(help="Seed of the sample, to draw the same again.", rich_help_panel=MODEL),
        "by chance",
    ] = None
    model: Annotated[shared.OwnModel | None, "none: the bundle's checkpoint"] = None
    data_root: Annotated[DataRoot | None, "the bundle's"] = None
    device: Annotated[shared.Device | None, "the bundle's"] = None
    digest: Annotated[
        str | None,
        typer.Option(
            help="Refuse a bundle of another digest than this one, that you have from elsewhere.",
            rich_help_panel=OUTPUT,
        ),
    ] = None


@app.command(cls=Command)
@takes
def main(options: VerifyOptions) -> int:
    """Check that every claim of a safety case follows from its evidence.

    Exit status 0: it does. 1: it does not. 2: it is no safety case, or the call was wrong. 3: internal error.
    """
    if options.device is not None:
        check_device(options.device)
    if options.digest is not None and not re.fullmatch("[0-9a-fA-F]{64}", options.digest):
        raise InvalidInput(
            f"digest is {one_line(options.digest, 80)}; give the 64 digits that robustpatch bundle printed"
        )
    found, console = _read(options.bundle), TextConsole()
    if options.digest is not None and found.digest != options.digest.lower():
        raise InvalidInput(f"digest is {options.digest}, but the bundle's is {found.digest}: it is another")
    lines, status = told(found)
    if options.sample and status == HELD:  # before anything is said: a wrong model is a wrong call
        made = _sampled(found, options)
        lines = [*lines, *_said(made, len(found.proved))]
        status = BROKEN if made.wrong else HELD
    for line in lines:
        console.print(line, soft_wrap=True)
    return status


def _read(path: str) -> Checked:
    try:
        return check(path)
    except Exception as error:  # a damaged file can fail in any way, and each way means: nothing was proved
        reason = one_line(error or type(error).__name__, 300)
        raise InvalidInput(
            f"bundle {path} cannot be verified: {reason}; make it again by robustpatch bundle"
        ) from error


def _sampled(found: Checked, asked: VerifyOptions) -> Sampled:
    given = {
        name: value for name, value in found.about["options"].items() if name not in ("output", "ray", "num_workers")
    }
    run = options_of(f"bundle {asked.bundle}", given, asked.model, asked.data_root)
    run = run if asked.device is None else replace(run, device=asked.device)
    return sample(found, run, asked.sample, asked.draw)


def _said(made: Sampled, proved: int) -> list[str]:
    chances = ", ".join(f"{share:.0%}: {unseen:.2g}" for share, unseen in made.unseen.items())
    return [
        f"the evidence of {len(made.images)} of {proved} images made again (images {some_of(made.images)})",
        f"were so much of all evidence false, the chance that this sample has none of it: {chances}",
        *(made.wrong or ["all of it is as in the bundle"]),
    ]


if __name__ == "__main__":
    app()

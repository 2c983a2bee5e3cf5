"""Options that several commands take, each declared once: its type and range, its help, its heading.

A command names them as the annotations of its settings and adds the default. Where that is None, a text beside says
what None stands for: `device: Annotated[Device | None, "the board's"] = None`. Options of images stand in
`robustpatch.data.images`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from robustpatch.cli.arguments import completing
from robustpatch.defenses import known_defenses
from robustpatch.errors import InvalidInput
from robustpatch.options import Count, Integer, Whole
from robustpatch.threats.parse import FORMS

PRECISIONS = ("float32", "bfloat16")
MODEL, IMAGES, ATTACK, MACHINE, OUTPUT = "Model", "Images", "Threat and attacks", "Machine", "Output"
_PATCH = f"The patch of the attacker: {FORMS}"

Runs = Annotated[list[str], typer.Argument(help="Outputs of robustpatch attack-vs-cert on the same images.")]
Only = Annotated[str, typer.Option(help="Rows of a board, or runs of a recipe, by name, comma-separated.")]

OwnModel = Annotated[
    str, typer.Option("--model", help="The run's model, where it is of your own code.", rich_help_panel=MODEL)
]

Voting = Annotated[
    str,
    typer.Option(
        help="Voting rule: threshold:0.3, top1, scores, tanh:0.05:1, relu:16 or sigmoid:0.5.", rich_help_panel=MODEL
    ),
]
Defense = Annotated[
    str,
    typer.Option(
        help=f"Put a defense around the network: {', '.join(known_defenses())}; with options, NAME:OPTION=VALUE,….",
        rich_help_panel=MODEL,
        **completing(*known_defenses()),
    ),
]
Guard = Annotated[float, typer.Option(help="Allowed change of a score.", rich_help_panel=MODEL)]

BatchSize = Annotated[Count, typer.Option(help="Images computed together.", rich_help_panel=MACHINE)]
NumImages = Annotated[Whole, typer.Option(help="Images, from the first on; 0: all.", rich_help_panel=IMAGES)]

Patch = Annotated[str, typer.Option(help=f"{_PATCH}.", rich_help_panel=ATTACK)]
Patches = Annotated[list[str], typer.Option(help=f"{_PATCH}.", rich_help_panel=ATTACK)]
Budget = Annotated[
    Count,
    typer.Option(help="Evaluations an image and attack. One is one ablation scored forward.", rich_help_panel=ATTACK),
]
Seed = Annotated[Integer, typer.Option(help="Seed of everything that is drawn at random.", rich_help_panel=ATTACK)]

Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …", rich_help_panel=MACHINE)]
Precision = Annotated[
    str, typer.Option(help="float32 or bfloat16.", rich_help_panel=MACHINE, **completing(*PRECISIONS))
]


def chosen(only: str | None, names: Sequence[str], what: str) -> list[str]:
    """Those of the names that --only asks for, all without it. Raises `InvalidInput` for one that `what` has not."""
    wanted = list(names) if only is None else [name.strip() for name in only.split(",")]
    unknown = sorted({*wanted} - {*names})
    if unknown:
        raise InvalidInput(f"only is {', '.join(unknown)}; {what} has {', '.join(names)}")
    return [name for name in names if name in wanted]

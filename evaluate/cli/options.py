"""Options of `evaluate.attack_vs_cert`: names, defaults, help and groups, for a command line or a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from attacks.registry import KNOWN
from attacks.registry import names as attack_names
from evaluate.cli.command import refusing
from robustpatch.checkpoints import names as checkpoint_names
from robustpatch.cli import shared
from robustpatch.cli.arguments import completing
from robustpatch.cli.shared import ATTACK, MACHINE, MODEL, OUTPUT
from robustpatch.data.images import DataOptions
from robustpatch.options import Count, Whole, names_of, options, read, some_of
from robustpatch.storage.toml import read_toml


def _configured(context: Any, path: Path | None) -> Path | None:
    """Take the file's values for those that the command line does not give. (The context is click's, or typer's.)"""
    if path is not None and not context.resilient_parsing:
        known = {name for param in context.command.params if (name := param.name) and name not in ("config", "help")}
        context.default_map = {**(context.default_map or {}), **refusing(lambda: read_configuration(path, known))}
    return path


@options
class ModelOptions:
    """The model of a run; None leaves what the checkpoint has."""

    checkpoint: Annotated[
        str,
        typer.Option(
            help="A shipped checkpoint's name, or a file.", rich_help_panel=MODEL, **completing(*checkpoint_names())
        ),
    ] = "mnist-columns2"
    model: Annotated[
        str | None,
        typer.Option(
            help="Your own instead: a TorchScript, torch.export (.pt2) or ONNX file; timm:NAME or torchvision:NAME "
            "with --weights; a folder of Hugging Face's; or FILE.py:NAME, a torch.nn.Module (its certify is tested, if "
            "it has one), a function that returns one, or a function of NumPy images.",
            rich_help_panel=MODEL,
        ),
    ] = None
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of timm:NAME or torchvision:NAME: a .safetensors file, or a state dict.", rich_help_panel=MODEL
        ),
    ] = None
    input_size: Annotated[
        Annotated[
            str,
            typer.Option(
                help="Size that the network of --model sees, 224 or 224x320; images of another are scaled to it.",
                rich_help_panel=MODEL,
            ),
        ]
        | None,
        "the model's own",
    ] = None
    mean: Annotated[
        Annotated[
            str,
            typer.Option(
                help="By which images in [0, 1] are normalised for --model: a number for each channel.",
                rich_help_panel=MODEL,
            ),
        ]
        | None,
        "the model's own",
    ] = None
    std: Annotated[
        Annotated[str, typer.Option(help="The same, by which they are divided.", rich_help_panel=MODEL)] | None,
        "the model's own",
    ] = None
    defense: shared.Defense | None = None
    theta: Annotated[
        float | None, typer.Option(help="Vote threshold instead of the checkpoint's.", rich_help_panel=MODEL)
    ] = None
    voting: Annotated[shared.Voting | None, "the checkpoint's"] = None
    guard: Annotated[shared.Guard | None, "by precision"] = None
    randomized: Annotated[
        bool, typer.Option(help="Sample the ablations instead of enumerating them: top-1 votes.", rich_help_panel=MODEL)
    ] = False
    alpha: Annotated[
        float | None,
        typer.Option(help="Chance of a randomized certificate to be wrong. Default 0.05.", rich_help_panel=MODEL),
    ] = None
    samples: Annotated[
        Count | None,
        typer.Option(
            help="Samples behind a randomized certificate, a tenth more to choose. Default 10,000.",
            rich_help_panel=MODEL,
        ),
    ] = None


@options
class AttackOptions:
    """The number of images, the attacks on them, and the machine; None leaves what each attack has."""

    num_images: Annotated[shared.NumImages | None, "200 at most"] = None
    attacks: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated: {attack_names()}; or none. "
            "standard is the worst case over an ensemble, quick a smaller one; grey, noise and natural are controls, "
            "and undefended: ignores the defense: alone they test no certificate.",
            rich_help_panel=ATTACK,
            **completing("none", *KNOWN),
        ),
    ] = "standard"
    top_k: Annotated[
        int,
        typer.Option(
            help="Certify and attack that the label stays among the K classes of most votes; 1: the prediction.",
            rich_help_panel=ATTACK,
        ),
    ] = 1
    steps: Annotated[
        Count | None,
        typer.Option(help="Gradient steps of a climb instead of each attack's own.", rich_help_panel=ATTACK),
    ] = None
    budget: Annotated[shared.Budget | None, "each attack's own"] = None
    certified_budget: Annotated[
        Whole, typer.Option(help="The same on certified images, unpruned; 0: no limit.", rich_help_panel=ATTACK)
    ] = 5_000
    seed: shared.Seed = 0
    device: shared.Device = "cpu"
    dtype: shared.Precision = "float32"
    batch_size: shared.BatchSize = 50


@options
class Options(AttackOptions, DataOptions, ModelOptions):
    """One run of `evaluate.attack_vs_cert`."""

    ablation: Annotated[
        str | None,
        typer.Option(
            help="Refuse a checkpoint for another: columns:2, rows:3, blocks:8, sparse:5; of your own: FILE.py:NAME.",
            rich_help_panel=MODEL,
        ),
    ] = None
    patch: shared.Patch = "5x5"
    growing: Annotated[
        str,
        typer.Option(
            help="What the largest certified size of each image, and certified accuracy by size, are of: square, disc "
            "or mask:FILE, scaled.",
            rich_help_panel=ATTACK,
        ),
    ] = "square"
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Run on a Ray cluster: auto or HOST:PORT; without an address, on one of this machine's own.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    num_workers: Annotated[
        Count | None,
        typer.Option(
            help="Workers on the cluster, each with as many threads as here, or a GPU. Default: all that fit.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    output: Annotated[
        str | None,
        typer.Option(
            help="Folder of the records, or s3://… and the like; a run killed is resumed from it. Default: runs/NAME.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    gallery: Annotated[
        Whole,
        typer.Option(
            help="Images of each outcome kept to look at in the report, spread over the batches; 0: none.",
            rich_help_panel=OUTPUT,
        ),
    ] = 8
    dry_run: Annotated[
        bool,
        typer.Option(help="Estimate time and evaluations from a few images, write nothing.", rich_help_panel=OUTPUT),
    ] = False
    quiet: Annotated[
        bool, typer.Option(help="Print the verdict, counterexamples, and no more.", rich_help_panel=OUTPUT)
    ] = False
    plain: Annotated[
        bool, typer.Option(help="No colour and no moving bar; so it is by itself in a log.", rich_help_panel=OUTPUT)
    ] = False
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with options by these names (patch = '5x5'); the command line overrides it.",
            is_eager=True,
            callback=_configured,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    replay: Annotated[
        str | None,
        typer.Option(
            help="Show a saved counterexample again, of the --checkpoint or --model named, and do no more.",
            rich_help_panel=OUTPUT,
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that differ from the defaults, in TOML's types, as `--config` reads them again."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        left_out = ("config", "dry_run", "quiet", "plain", "replay")
        return {
            name: str(value) if isinstance(value, Path) else value
            for name, value in own.items()
            if name not in left_out
        }


def read_configuration(path: Path, known: set[str]) -> dict[str, Any]:
    """Options from a TOML file; a list is joined by commas, and dashes are as good as underscores.

    Raises `InvalidInput` for a file that is none, for names that are not in `known`, and for values of other types.
    """
    values = {name.replace("-", "_"): value for name, value in read_toml(path, "config").items()}
    given = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
    read(some_of(Options, *(name for name in names_of(Options) if name in known)), given, f"config {path}: ")
    return given

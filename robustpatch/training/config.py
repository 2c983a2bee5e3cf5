"""The settings of a training."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

import typer
from pydantic import BeforeValidator, Field

from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.cli import shared
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.networks import usual_name
from robustpatch.options import Count, Weight, Whole, options

_OF_ABLATIONS = (
    "voting",
    "encoding",
    "patch",
    "ablations",
    "certificate",
    "clean",
    "cast",
    "local",
    "teacher",
)  # settings that an ablation gives a meaning
_USUAL, _THRESHOLD = "", "threshold:0.3"
Ablation = Annotated[str | None, BeforeValidator(lambda value: None if value == "none" else value)]
Network = Annotated[
    dict[str, Any] | None, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)
]


@options
class TrainingConfig:
    """Everything that decides the weights, but for the data and the machine.

    `ablation` is "columns:2" unless a defense is named. Without one (None, or "none") the network is trained on whole
    images: an undefended classifier, or, with a `defense` ("name:option=value", see `robustpatch.defenses`), that
    around it, which says what is minimised. Voting, encoding, patch (but of a defense, which is to withstand it),
    ablations and certificate have no meaning then, and are refused unless left at their defaults.

    `network` is a name and options; None is the ablation's usual one. `ablations`: ablations of each image in a step; 0
    means all for a one-pass base and one, the same for the whole batch as in the paper, for a base that enumerates; of
    a sparse ablation, so many of each image's own, 0 for one. `start` is a checkpoint to begin with, or for a union of
    ablations one for each part ("mnist-columns2+mnist-rows2"); with `only`, a name such as "head", all other weights,
    batch statistics too, stay as they start. For the weights `certificate`, `clean` and `local`, `cast` and `teacher`
    see `robustpatch.training.losses`. The momentum is AdamW's first decay rate.
    """

    ablation: Annotated[
        Ablation,
        typer.Option(
            help="columns:2, rows:3, blocks:8; with a stride: columns:19/10; choices of cells of a grid: "
            "2*grid-columns:1, 2*grid-blocks:4; several: columns:2+rows:2; pixels at random: sparse:5; none.",
            show_default="columns:2, or none with a defense",
        ),
    ] = _USUAL
    defense: shared.Defense | None = None
    network: Annotated[
        Network,
        typer.Option(
            parser=str,
            metavar="NAME",
            help="strip (bands), block (blocks) or grid (cells of a grid), which score all ablations in one pass; "
            "residual-strip, band and conv-block, deeper ones; window (a library's network on each band or block); mlp "
            "(pixels at random), mnist-cnn and resnet18 (the paper's), small-cnn or pooled-cnn (usual ones); vit, "
            "resnet50, torchvision:NAME, timm:NAME. Default: the ablation's own.",
        ),
    ] = None
    voting: shared.Voting = _THRESHOLD
    encoding: Annotated[str, typer.Option(help="How hidden pixels are shown: complement or mask.")] = "complement"
    patch: shared.Patch = "5x5"
    epochs: Annotated[Count, typer.Option(help="Passes over the training images.")] = 8
    batch_size: Annotated[Count, typer.Option(help="Images of a step.")] = 256
    optimizer: Annotated[Literal["sgd", "adamw"], typer.Option(help="sgd (Nesterov momentum) or adamw.")] = "sgd"
    lr: Annotated[Weight, typer.Option(help="Peak of the one-cycle learning rate.")] = 0.1
    momentum: Annotated[
        float, Field(ge=0, lt=1), typer.Option(help="Middle of the momentum's cycle, which falls while the rate rises.")
    ] = 0.9
    weight_decay: Annotated[Weight, typer.Option(help="Decay of the weights, as the optimizer takes it.")] = 5e-4
    ablations: Annotated[
        Whole, typer.Option(help="Ablations of each image in a step; 0: all in one pass, else one.")
    ] = 0
    certificate: Annotated[
        Weight, typer.Option(help="Weight of the certificate's own loss beside cross-entropy; 0: none.")
    ] = 0.0
    clean: Annotated[Weight, typer.Option(help="Weight of the clean prediction within the certificate's loss.")] = 1.0
    cast: Annotated[
        bool, typer.Option(help="Count votes in the certificate's loss as cast, 0 or 1, not as soft ones.")
    ] = False
    local: Annotated[
        Weight, typer.Option(help="Weight of the ablations' cross-entropy beside the certificate's loss.")
    ] = 1.0
    crop: Annotated[
        Whole, typer.Option(help="Move each training image by up to so many pixels in either direction.")
    ] = 0
    flip: Annotated[bool, typer.Option(help="Mirror training images left to right at random.")] = False
    zoom: Annotated[
        float,
        Field(gt=0, le=1),
        typer.Option(help="Show a part of each training image at full size, at least so much of its area."),
    ] = 1.0
    turn: Annotated[
        float, Field(ge=0, le=180), typer.Option(help="Rotate training images by up to so many degrees either way.")
    ] = 0.0
    colour: Annotated[
        float,
        Field(ge=0, le=1),
        typer.Option(help="Change brightness, contrast and saturation of training images by up to this share."),
    ] = 0.0
    teacher: Annotated[
        str | None, typer.Option(help="Learn from the scores of this checkpoint, too, of the same ablation.")
    ] = None
    start: Annotated[str | None, typer.Option(help="Begin with the weights of this checkpoint.")] = None
    only: Annotated[
        str | None, typer.Option(help="Train the weights under this name alone, such as head; all others stay.")
    ] = None
    bfloat16: Annotated[bool, typer.Option(help="Train under bfloat16 autocast.")] = True
    seed: Annotated[shared.Seed, Field(gt=-(2**32), lt=2**32)] = (
        0  # each epoch and image makes one of its own of it, in 64 bits
    )

    def __post_init__(self) -> None:
        if self.ablation == _USUAL:
            object.__setattr__(self, "ablation", "columns:2" if self.defense is None else None)
        source = None if self.ablation is None else parse_source(self.ablation)
        if self.network is None:
            name = "small-cnn" if source is None else usual_name(source)
            object.__setattr__(self, "network", {"name": name})
        elif not isinstance(self.network.get("name"), str):
            raise InvalidInput(f"network is {self.network!r}; its name is needed")
        if self.defense is not None:
            parse_defense(self.defense)
        for own in fields(self):
            if own.name in self._meaningless and getattr(self, own.name) != own.default:
                raise InvalidInput(
                    f"{own.name} is {getattr(self, own.name)}, but without an ablation there is nothing it acts on; "
                    f"drop --{own.name} or name an ablation"
                )
        if self._sparse and self.voting not in (_THRESHOLD, "top1"):
            raise InvalidInput(f"voting is {self.voting}, but a sparse ablation casts top-1 votes; drop --voting")
        for name, where in (("clean", "within"), ("local", "beside")):
            if getattr(self, name) != 1.0 and not self.certificate:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}, a weight {where} the certificate's loss; set --certificate too"
                )
        if self.cast and not self.certificate:
            raise InvalidInput("cast is True, a way to count in the certificate's loss; set --certificate too")
        if self.cast and self._sparse:
            raise InvalidInput("cast is True, but with a sparse ablation votes are always counted as cast; drop --cast")

    @property
    def _meaningless(self) -> list[str]:
        if self.ablation is not None:
            return []
        return [name for name in _OF_ABLATIONS if self.defense is None or name != "patch"]

    @property
    def _sparse(self) -> bool:
        return self.ablation is not None and isinstance(parse_source(self.ablation), SparseAblation)

    @property
    def augmentation(self) -> dict[str, Any]:
        """The random changes of training images: the options of `augmented`."""
        return {name: getattr(self, name) for name in ("zoom", "turn", "crop", "flip", "colour")}

    def for_checkpoint(self) -> dict[str, Any]:
        """The settings as a checkpoint keeps them: with the guard of the voting, and without what has no meaning."""
        if self.ablation is not None:
            return {**asdict(self), "guard": None} | ({"voting": "top1"} if self._sparse else {})
        return {name: value for name, value in asdict(self).items() if name not in self._meaningless}

"""The settings of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput

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
_THRESHOLD = "threshold:0.3"


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights, but for the data and the machine.

    `ablations`: ablations of each image in a step; 0 means all for a one-pass base and one, the same for the whole
    batch as in the paper, for a base that enumerates; of a sparse ablation, so many of each image's own, 0 for one. The
    learning rate follows one cycle up to `lr`. `start` is a checkpoint to begin with, or for a union of ablations one
    for each part ("mnist-columns2+mnist-rows2"); with `only`, a name such as "head", the weights under that name alone
    are trained, and all others, batch statistics too, stay as they start. `certificate` is the weight of the
    certificate's loss, in which the clean prediction weighs `clean` (see `robustpatch.training.losses`); with `cast` it
    counts votes as cast, 0 or 1; `local` is the weight of the ablations' cross-entropy, 0 for the margin end to end, as
    in BagCert. `teacher` is a checkpoint of the same ablation: half of the ablations' cross-entropy is then against its
    scores of the same ablation, which say more than a label does of what little it shows. `optimizer` is "sgd"
    (Nesterov) or "adamw" (`momentum` is its first decay rate). `crop`, `flip` and `zoom` vary the training images: each
    is moved by up to so many pixels, mirrored at random, and shown in part, at least so much of its area, at its full
    size.

    Without an `ablation` (None) the network is trained on whole images, as usual: an undefended classifier. Voting,
    encoding, patch, ablations and certificate have no meaning then, and are refused unless left at their defaults. With
    a `defense` ("name:option=value", see `robustpatch.defenses`) that is put around it and says what is minimised; the
    patch is the one that it is to withstand.
    """

    ablation: str | None = "columns:2"
    defense: str | None = None
    network: dict[str, Any] = field(default_factory=lambda: {"name": "strip"})
    voting: str = _THRESHOLD
    encoding: str = "complement"
    patch: str = "5x5"
    epochs: int = 8
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ablations: int = 0
    certificate: float = 0.0
    clean: float = 1.0
    cast: bool = False
    local: float = 1.0
    crop: int = 0
    flip: bool = False
    zoom: float = 1.0
    teacher: str | None = None
    start: str | None = None
    only: str | None = None
    bfloat16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for own in fields(self):
            check_type(own.name, getattr(self, own.name), own.default)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "momentum", "weight_decay", "ablations", "certificate", "clean", "local", "crop"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must not be negative")
        if not self.momentum < 1:
            raise InvalidInput(f"momentum is {self.momentum}; it must be below 1")
        if abs(self.seed) >= 2**32:  # each epoch and image makes one of its own of it, in 64 bits
            raise InvalidInput(f"seed is {self.seed}; give one between -2^32 and 2^32")
        if not 0 < self.zoom <= 1:
            raise InvalidInput(f"zoom is {self.zoom}, a share of an image's area; it must be above 0 and at most 1")
        if self.optimizer not in ("sgd", "adamw"):
            raise InvalidInput(f"optimizer is {self.optimizer!r}; use sgd or adamw")
        if self.defense is not None:
            parse_defense(self.defense)
        for own in fields(self) if self.ablation is None else ():
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

    def for_checkpoint(self) -> dict[str, Any]:
        """The settings as a checkpoint keeps them: with the guard of the voting, and without what has no meaning."""
        if self.ablation is not None:
            return {**asdict(self), "guard": None} | ({"voting": "top1"} if self._sparse else {})
        return {name: value for name, value in asdict(self).items() if name not in self._meaningless}


def check_type(name: str, value: Any, default: Any) -> None:
    """Refuse a value of another type than the default's (a name where that is None), and numbers that are none."""
    if isinstance(default, bool):
        kinds, needed = (bool,), "true or false"
    elif isinstance(default, int):
        kinds, needed = (int,), "a whole number"
    elif isinstance(default, float):
        kinds, needed = (int, float), "a finite number"
    elif name == "network":
        kinds, needed = (dict,), "a name and options"
    else:
        kinds, needed = (str,) if isinstance(default, str) and name != "ablation" else (str, type(None)), "a text"
    right = isinstance(value, kinds) and isinstance(value, bool) == (bool in kinds)
    if not right or (isinstance(value, float) and not isfinite(value)):
        raise InvalidInput(f"{name} is {value!r}; give {needed}")

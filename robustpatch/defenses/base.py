"""The base of every defense that is no smoothing: a value with its options, and a module around a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.cli.text import one_line
from robustpatch.encoding import Encoding
from robustpatch.errors import InvalidInput
from robustpatch.options import STRICT, read_texts
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import first_argmax


@dataclass(frozen=True)
class Defense(ABC):
    """A way to defend a network. Its text, "name" or "name:option=value,option=value", is `parse_defense`'s input.

    Options are the fields of the dataclass: numbers, booleans and words.
    """

    name: ClassVar[str]
    __pydantic_config__: ClassVar[Any] = STRICT

    @property
    def encoding(self) -> Encoding | None:
        """The encoding by which the network is shown hidden pixels; None where it sees images as they are."""
        return None

    @abstractmethod
    def wrap(self, network: nn.Module, *, num_classes: int) -> Defended:
        """The network with this defense around it."""

    def __str__(self) -> str:
        given = [(own.name, getattr(self, own.name)) for own in fields(self) if getattr(self, own.name) != own.default]
        return ":".join([self.name, *([",".join(f"{name}={value}" for name, value in given)] if given else [])])


class Defended(Classifier):
    """A classifier with a defense around its `network`, which holds the weights: here one that changes nothing.

    A defense that certifies is a `CertifiedClassifier` too, and predicts what that certifies. `forward` is
    what attacks climb: its gradient leads through the defense, and its argmax is `predict` wherever that is no argmax
    of something else.
    """

    certified_in_training: ClassVar[int] = 500
    """Validation images certified after an epoch: more would take longer than the training."""

    predicted_in_training: ClassVar[int | None] = None
    """Validation images predicted after an epoch; None: all."""

    def __init__(self, network: nn.Module, defense: Defense, *, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise InvalidInput(f"num_classes is {num_classes}; a classifier needs at least two")
        self.network, self.defense, self.num_classes = network, defense, num_classes

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        return self.network(x)

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of the largest output, the lowest index among equals. Raises `InvalidInput`."""
        checks.inputs(self, x)
        tensor = next(self.parameters(), None)
        return first_argmax(self((x if tensor is None else x.to(tensor.dtype)).clone()).float())

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Counts the evaluations of a forward pass and of `predict` on one image of that size: the network's own."""
        return as_classifier(self.network).cost(height, width)

    def weights_module(self) -> nn.Module:
        return as_classifier(self.network).weights_module()

    def describe(self) -> dict[str, Any]:
        return {**as_classifier(self.network).describe(), "defense": str(self.defense)}

    def in_words(self) -> str:
        inside = as_classifier(self.network)
        around = f" around {inside.in_words()}" if voting_classifier(inside) is not None else ""
        return f"{self.defense}{around}" + ("" if isinstance(self, CertifiedClassifier) else ", no certificates")

    def undefended(self) -> Bare:
        return Bare(self.network, self.defense, num_classes=self.num_classes).eval()

    def training_loss(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat, generator: torch.Generator, done: float
    ) -> Float[Tensor, ""]:
        """Returns the loss that `robustpatch.train` minimises, under its autocast; `done` is the share of all steps
        taken, 0 to 1.

        Around a smoothed classifier it is not asked, but that one's objective minimised, unless a defense overrides it.
        Chance is drawn from `generator` (on the CPU) alone, so that a run resumes to the bit.
        """
        return nn.functional.cross_entropy(self(x).float(), y)


class Bare(Defended):
    """The network without the defense, shown whole images, whose `predict` always abstains and says that this is chance
    (see `attacks.base.is_adversarial`): no search learns whether it has succeeded.
    """

    randomized = True

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        encoding = self.defense.encoding
        if encoding is not None:
            x = encoding(x, torch.ones_like(x[:, 0], dtype=torch.bool))
        return as_classifier(self.network).outputs(x)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        return torch.full((len(x),), -1, device=x.device)

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """A forward pass costs what the network does, `predict` nothing."""
        return super().cost(height, width)[0], 0


def read_options(kind: type[Defense], text: str) -> Defense:
    """`kind` with the options of "option=value,option=value". Raises `InvalidInput`, naming what is wrong."""
    given, name = dict[str, str](), ""
    for part in text.split(",") if text else []:
        if "=" not in part and name != "patch":  # whose own commas part angles and alternatives
            raise InvalidInput(f"defense {kind.name} has {one_line(repr(part), 80)}; write option=value,option=value")
        if "=" not in part:
            given[name] += f",{part.strip()}"
            continue
        name, value = (word.strip() for word in part.split("=", 1))
        given[name] = value
    return read_texts(kind, given, f"defense {kind.name}: ")

"""Defenses that clean the image before the network sees it, and what an attacker's gradient makes of that."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.defenses.base import Defended, Defense
from robustpatch.errors import InvalidInput
from robustpatch.gradients import StraightThrough

GRADIENTS = ("through", "identity")


def check_options(defense: Defense, **holds: tuple[bool, str]) -> None:
    """Raise `InvalidInput` for the first option that does not hold, with its remedy."""
    for name, (right, remedy) in holds.items():
        if not right:
            raise InvalidInput(f"defense {defense.name}: {name} is {getattr(defense, name)!r}; it must be {remedy}")


def gradient_option(gradient: str) -> tuple[bool, str]:
    """The values of an option `gradient` that `check_options` allows."""
    return gradient in GRADIENTS, " or ".join(GRADIENTS)


def precise(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In float32 at the least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Filtered(Defended):
    """The network's answer to `clean(x)`; no certificate.

    The gradient of `forward` is that of the composition ("through"), or, since a patch that is cleaned away has none
    there, that of the network at `clean(x)`, as if cleaning changed nothing ("identity": backward pass differentiable
    approximation, Athalye et al. 2018, Section 4.1). Its value is the same to the bit.
    """

    @abstractmethod
    def clean(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images as the network is to see them, in their own precision, each treated on its own."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        if self.gradient == "identity":
            with torch.no_grad():
                cleaned = self.clean(x)
            return self.network(StraightThrough.apply(x, cleaned))
        return self.network(self.clean(x))

    @property
    def gradient(self) -> str:
        return str(getattr(self.defense, "gradient", "through"))

"""Classifiers and attacks that write to whatever they are given, once they have their answer from it; and their twins.

A scribbler computes the same function of its images as its twin. Whatever is said of one must be said of the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustpatch.certificates.exact import Certificate
from robustpatch.threats.base import Threat

METHODS = ("forward", "predict", "certify", "votes", "logits", "score_all", "score_pairs")
When = Callable[[Tensor], bool]


def always(_: Tensor) -> bool:
    return True


def never(_: Tensor) -> bool:
    return False


def alone(x: Tensor) -> bool:
    return len(x) == 1


def climbed(_: Tensor) -> bool:
    return torch.is_grad_enabled()


def scribbling(kind: type[nn.Module], *methods: str, when: When = always) -> type[nn.Module]:
    """The class, of which these methods (all that it has of `METHODS`) write to each tensor they were given."""

    def wrap(name: str):
        original = getattr(kind, name)

        def method(self, *given, **named):
            found = original(self, *(one.clone() if isinstance(one, Tensor) else one for one in given), **named)
            if when(given[0]):
                for one in given:
                    if isinstance(one, Tensor):
                        with torch.no_grad():
                            one.zero_()
            return found

        return method

    chosen = methods or tuple(name for name in METHODS if hasattr(kind, name))
    return type(kind.__name__, (kind,), {name: wrap(name) for name in chosen})


class Uncertified(nn.Module):
    """Class 1 where all pixels sum to more than 5."""

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        one = torch.sigmoid(50 * (x.sum((1, 2, 3)) - 5))
        return torch.stack([1 - one, one], 1)

    def predict(self, x: Tensor) -> Tensor:
        return self.forward(x).argmax(1)


class Sum(Uncertified):
    """The same, with the false claim that no patch changes its answer."""

    def certify(self, x: Tensor, threat: Threat) -> Certificate:
        return claim(self.forward(x).argmax(1), threat)


def claim(prediction: Tensor, threat: Threat, certified: Tensor | None = None, **more) -> Certificate:
    """The claim that these predictions stand; all, unless `certified` says which."""
    certified = torch.ones_like(prediction, dtype=torch.bool) if certified is None else certified
    return Certificate(prediction, certified, None, None, threat, "exact", 0.0, 0 * prediction, **more)

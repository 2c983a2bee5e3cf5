"""Dark images, and classifiers of others that certify what is false of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks import PatchPGD, Proposal, SparseRS
from evaluate.results.metrics import Summary, summarise
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.scribblers import claim
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import evaluated

ONE = PatchThreat(1, 1)
DARK = image_set(torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2, torch.zeros(4).long(), 2)
PGD, RANDOM = PatchPGD(restarts=3), SparseRS(queries=200)


def scores(changed: Tensor) -> Tensor:
    return torch.stack([1 - changed, changed], 1)


class Bright(nn.Module):
    """Class 1 where a pixel exceeds 0.9, and certifies that no patch changes that: false for every dark image. Its
    gradient is 0.
    """

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        return scores((x.amax((1, 2, 3)) > 0.9).float() + 0 * x.sum((1, 2, 3)))

    def predict(self, x: Tensor) -> Tensor:
        return self(x).argmax(1)

    def certify(self, x: Tensor, threat):
        return claim(self.predict(x), threat)


class Told:
    """Returns the clean image with `change` made to it, and says of itself whatever sounds best."""

    touched_only = False

    def __init__(self, change=lambda x: x, corner=(0, 0), name="told") -> None:
        self.change, self.corner, self.name = change, corner, name

    def unpruned(self, budget):
        return self

    def check(self, threat):
        pass

    def __call__(self, model, x, y, threat, *, generator):
        corners = torch.tensor(self.corner).expand(len(x), threat.count, 2).clone()
        spent, everything = torch.full((len(x),), 10**6), torch.ones(len(x))
        mine = [frozenset(map(str, range(99)))] * len(x)
        return Proposal(self.change(x.clone()), corners, spent, everything, patches=mine)


def put(value):
    """The change of the upper left pixel to a value, or by a function."""

    def change(x):
        x[:, :, 0, 0] = value(x[:, :, 0, 0]) if callable(value) else value
        return x

    return change


def run(model, output, *attacks, data=DARK, threat=ONE, **settings) -> Summary:
    return summarise(evaluated(model, output, attacks, data=data, threat=threat, **settings))

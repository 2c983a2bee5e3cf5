"""(g) Certifiers that draw lots and do not say so: their votes differ from call to call."""

from __future__ import annotations

import numpy as np
from torch import nn

from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, bands, numpy_scores, torch_views


class SampledColumns(ArrayVotes):
    """A random three quarters of the bands vote, drawn anew by every call; of them, as many as ever can are counted as
    touched. numpy.
    """

    axis = 3

    def votes(self, x):
        masks = self.masks(x)
        chosen = np.sort(np.random.default_rng().permutation(len(masks))[: max(1, 3 * len(masks) // 4)])
        return numpy_scores(self.base, x, masks[chosen]).argmax(axis=2)


class Dropped(ColumnVotes):
    """Columns whose pixels are dropped at random, in evaluation mode too: F.dropout is in training mode by default."""

    def scores(self, x):
        kept = self.kept(x)
        views = nn.functional.dropout(torch_views(x, kept), 0.1)
        return self.base(views).unflatten(0, (len(kept), len(x))).transpose(0, 1)


class Restless(ArrayVotes):
    """Rows that begin at an offset which a generator of its own draws: seeded, so "reproducible", but every call moves
    it on. Bands of two side by side. numpy.
    """

    def __init__(self, base, num_classes):
        super().__init__(base, num_classes)
        self.chance = np.random.default_rng(0)

    def kept(self, x):
        return np.roll(bands(x.shape[2], 2, 2), self.chance.integers(x.shape[2]), axis=1)

    def delta(self, x, threat):
        return threat.count * (threat.height // 2 + 2)  # odd heights wrap: one band more than m // 2 + 1

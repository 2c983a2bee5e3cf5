"""(g) Certifiers that draw lots and do not say so: their votes differ from call to call."""

from __future__ import annotations

import numpy as np
from torch import nn

from tests.evaluate.acceptance.common import bands, claim, most_touched, numpy_scores, row_masks, torch_views


class SampledColumns:
    """A random three quarters of the bands vote, drawn anew by every call; of them, as many as ever can are counted as
    touched. numpy.
    """

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _counts(self, x):
        kept = bands(x.shape[3], 2)
        chosen = np.sort(np.random.default_rng().permutation(len(kept))[: max(1, 3 * len(kept) // 4)])
        masks = np.repeat(kept[chosen][:, None, :], x.shape[2], axis=1)
        votes = numpy_scores(self.base, x, masks).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        counts = self._counts(x)
        first, second = np.sort(counts, axis=1)[:, [-1, -2]].T
        delta = threat.count * most_touched(bands(x.shape[3], 2), threat.width)
        return claim(counts.argmax(axis=1), first - second > 2 * delta)


class Dropped(nn.Module):
    """Columns whose pixels are dropped at random, in evaluation mode too: F.dropout is in training mode by default."""

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def counts(self, x):
        kept = bands(x.shape[3], 2)
        views = nn.functional.dropout(torch_views(x, kept), 0.1)
        votes = self.base(views).argmax(dim=1).unflatten(0, (len(kept), len(x)))
        return nn.functional.one_hot(votes, self.num_classes).sum(dim=0)

    def predict(self, x):
        return self.counts(x).argmax(dim=1)

    def certify(self, x, threat):
        counts = self.counts(x)
        first, second = counts.topk(2, dim=1).values.unbind(dim=1)
        delta = threat.count * most_touched(bands(x.shape[3], 2), threat.width)
        return claim(counts.argmax(dim=1), first - second > 2 * delta)


class Restless:
    """Rows that begin at an offset which a generator of its own draws: seeded, so "reproducible", but every call moves
    it on. Bands of two side by side. numpy.
    """

    def __init__(self, base, num_classes):
        self.base, self.num_classes, self.chance = base, num_classes, np.random.default_rng(0)

    def _counts(self, x):
        masks = np.roll(row_masks(x.shape[2], x.shape[3], 2, 2), self.chance.integers(x.shape[2]), axis=1)
        votes = numpy_scores(self.base, x, masks).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        counts = self._counts(x)
        first, second = np.sort(counts, axis=1)[:, [-1, -2]].T
        delta = threat.count * (threat.height // 2 + 2)  # odd heights wrap: one band more than m // 2 + 1
        return claim(counts.argmax(axis=1), first - second > 2 * delta)


def sampled_columns(base, num_classes, image_shape):
    return SampledColumns(base, num_classes)


def dropped(base, num_classes, image_shape):
    return Dropped(base, num_classes).eval()


def restless(base, num_classes, image_shape):
    return Restless(base, num_classes)

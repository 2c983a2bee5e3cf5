"""(e) Right for one image, wrong for several."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import bands, claim, most_touched, numpy_scores, row_masks, torch_views


class Leftover:
    """Certifies eight images at a time, into an array that is True until it is filled. Of more than eight, the last
    incomplete batch is never looked at. numpy, rows.
    """

    batch = 8

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _counts(self, x):
        votes = numpy_scores(self.base, x, row_masks(x.shape[2], x.shape[3], 2)).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        delta = threat.count * most_touched(bands(x.shape[2], 2), threat.height)
        prediction, certified = self.predict(x), np.ones(len(x), dtype=bool)
        size = min(self.batch, len(x))
        for n in range(len(x) // size):
            some = slice(n * size, (n + 1) * size)
            first, second = np.sort(self._counts(x[some]), axis=1)[:, [-1, -2]].T
            certified[some] = first - second > 2 * delta
        return claim(prediction, certified)


class Shuffled(nn.Module):
    """All views of all images in one call of the base, view by view, taken apart again image by image: with several
    images each gets votes of the others.
    """

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def counts(self, x):
        kept = bands(x.shape[3], 2)
        votes = self.base(torch_views(x, kept)).argmax(dim=1).view(len(x), len(kept))
        return nn.functional.one_hot(votes, self.num_classes).sum(dim=1)

    def predict(self, x):
        return self.counts(x).argmax(dim=1)

    def certify(self, x, threat):
        counts, prediction = self.counts(x), self.predict(x)
        delta = threat.count * most_touched(bands(x.shape[3], 2), threat.width)
        number = torch.arange(self.num_classes)
        needed = 2 * delta + (number < prediction[:, None]).long()
        lead = counts.gather(1, prediction[:, None]) - counts
        return claim(prediction, ((lead >= needed) | (number == prediction[:, None])).all(dim=1))


class Broadcast:
    """Leads as [B, 1] less [B], which is [B, B], of which the first column is kept: every image is compared with the
    runner-up of the first one. numpy, columns of three in steps of two.
    """

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _counts(self, x):
        masks = np.repeat(bands(x.shape[3], 3, 2, wrap=False)[:, None, :], x.shape[2], axis=1)
        votes = numpy_scores(self.base, x, masks).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        counts = self._counts(x)
        delta = threat.count * most_touched(bands(x.shape[3], 3, 2, wrap=False), threat.width)
        lead = counts.max(axis=1, keepdims=True) - np.sort(counts, axis=1)[:, -2]
        return claim(counts.argmax(axis=1), lead[:, 0] > 2 * delta)


def leftover(base, num_classes, image_shape):
    return Leftover(base, num_classes)


def shuffled(base, num_classes, image_shape):
    return Shuffled(base, num_classes).eval()


def broadcast(base, num_classes, image_shape):
    return Broadcast(base, num_classes)

"""(e) Right for one image, wrong for several."""

from __future__ import annotations

import numpy as np

from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, claim, torch_views


class Leftover(ArrayVotes):
    """Certifies eight images at a time, into an array that is True until it is filled. Of more than eight, the last
    incomplete batch is never looked at. numpy, rows.
    """

    batch = 8

    def certify(self, x, threat):
        prediction, certified = self.predict(x), np.ones(len(x), dtype=bool)
        size = min(self.batch, len(x))
        for n in range(len(x) // size):
            some = slice(n * size, (n + 1) * size)
            certified[some] = super().certify(x[some], threat).certified
        return claim(prediction, certified)


class Shuffled(ColumnVotes):
    """All views of all images in one call of the base, view by view, taken apart again image by image: with several
    images each gets votes of the others.
    """

    def scores(self, x):
        kept = self.kept(x)
        return self.base(torch_views(x, kept)).unflatten(0, (len(x), len(kept)))


class Broadcast(ArrayVotes):
    """Leads as [B, 1] less [B], which is [B, B], of which the first column is kept: every image is compared with the
    runner-up of the first one. numpy, columns of three in steps of two.
    """

    size, stride, wrap, axis = 3, 2, False, 3

    def certify(self, x, threat):
        counts = self.counts(x)
        lead = counts.max(axis=1, keepdims=True) - np.sort(counts, axis=1)[:, -2]
        return claim(counts.argmax(axis=1), lead[:, 0] > 2 * self.delta(x, threat))

"""(a) Equal votes go elsewhere than the certificate believes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, bands, claim, most_touched


class SortedColumns(ColumnVotes):
    """The prediction is the last of the sorted counts, which of equal ones is the highest class; the certificate has
    the lowest win. Votes 6:0 of six bands, a patch that touches three: 3:3 is class 1, but 6 ≥ 2·3 is enough for 0.
    """

    def winner(self, counts):
        return counts.sort(dim=1, stable=True).indices[:, -1]


class PairedRows(ArrayVotes):
    """The winner is the largest pair (votes, class), so the higher class at a tie; rivals below are asked for one vote
    more, those above are not. numpy, rows of three in steps of two, cut off at the border.
    """

    size, stride, wrap = 3, 2, False

    def predict(self, x):
        return np.array([max((n, k) for k, n in enumerate(poll))[1] for poll in self.counts(x)])

    def certify(self, x, threat):
        delta, certified, prediction = self.delta(x, threat), [], self.predict(x)
        for poll, c in zip(self.counts(x), prediction, strict=True):
            others = [j for j in range(self.num_classes) if j != c]
            certified.append(all(poll[c] - poll[j] >= 2 * delta + (j < c) for j in others))
        return claim(prediction, np.array(certified))


class FairBlocks(nn.Module):
    """Ties are drawn, by a generator that the image's own values seed: fair, reproducible, and another draw for
    another image. The certificate has the lowest class win. Blocks of 4×4 side by side.
    """

    side = 4

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def _counts(self, x):
        height, width = x.shape[2:]
        total = torch.zeros(len(x), self.num_classes, dtype=torch.long)
        for top in range(0, height, self.side):
            for left in range(0, width, self.side):
                view = torch.zeros_like(x)
                window = (..., slice(top, top + self.side), slice(left, left + self.side))
                view[window] = x[window] + 1
                total += nn.functional.one_hot(self.base(view).argmax(dim=1), self.num_classes)
        return total

    def predict(self, x):
        found = []
        for counts, image in zip(self._counts(x), x, strict=True):
            best = (counts == counts.max()).nonzero()[:, 0]
            seed = int((image.double() * 255).round().sum())
            drawn = torch.randint(len(best), (), generator=torch.Generator().manual_seed(seed))
            found.append(int(best[drawn]))
        return torch.tensor(found)

    def certify(self, x, threat):
        across = [
            most_touched(bands(n, 4, 4, wrap=False), m)
            for n, m in zip(x.shape[2:], (threat.height, threat.width), strict=True)
        ]
        delta = threat.count * across[0] * across[1]
        counts, prediction = self._counts(x), self.predict(x)
        rivals = counts.scatter(1, prediction[:, None], -1)
        number = torch.arange(self.num_classes)
        best = (rivals + (number < prediction[:, None]).long()).amax(dim=1)  # a rival below c wins ties
        return claim(prediction, counts.gather(1, prediction[:, None])[:, 0] - best >= 2 * delta)

"""(a) Equal votes go elsewhere than the certificate believes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import bands, claim, most_touched, numpy_scores, row_masks, torch_views


class SortedColumns(nn.Module):
    """The prediction is the last of the sorted counts, which of equal ones is the highest class; the certificate has
    the lowest win. Votes 6:0 of six bands, a patch that touches three: 3:3 is class 1, but 6 ≥ 2·3 is enough for 0.
    """

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def counts(self, x):
        kept = bands(x.shape[3], 2)
        votes = self.base(torch_views(x, kept)).argmax(dim=1).unflatten(0, (len(kept), len(x)))
        return nn.functional.one_hot(votes, self.num_classes).sum(dim=0)

    def predict(self, x):
        return self.counts(x).sort(dim=1, stable=True).indices[:, -1]

    def certify(self, x, threat):
        counts, prediction = self.counts(x), self.predict(x)
        delta = threat.count * most_touched(bands(x.shape[3], 2), threat.width)
        number = torch.arange(self.num_classes)
        needed = 2 * delta + (number < prediction[:, None]).long()
        lead = counts.gather(1, prediction[:, None]) - counts
        return claim(prediction, ((lead >= needed) | (number == prediction[:, None])).all(dim=1))


class PairedRows:
    """The winner is the largest pair (votes, class), so the higher class at a tie; rivals below are asked for one vote
    more, those above are not. numpy, rows of three in steps of two, cut off at the border.
    """

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _polls(self, x):
        masks = row_masks(x.shape[2], x.shape[3], 3, 2, wrap=False)
        votes = numpy_scores(self.base, x, masks).argmax(axis=2)
        return [np.bincount(own, minlength=self.num_classes) for own in votes]

    def predict(self, x):
        return np.array([max((n, k) for k, n in enumerate(poll))[1] for poll in self._polls(x)])

    def certify(self, x, threat):
        delta = threat.count * most_touched(bands(x.shape[2], 3, 2, wrap=False), threat.height)
        certified = []
        prediction = self.predict(x)
        for poll, c in zip(self._polls(x), prediction, strict=True):
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
        across = [most_touched(bands(n, 4, 4, wrap=False), m) for n, m in zip(x.shape[2:], _sides(threat), strict=True)]
        delta = threat.count * across[0] * across[1]
        counts, prediction = self._counts(x), self.predict(x)
        rivals = counts.scatter(1, prediction[:, None], -1)
        number = torch.arange(self.num_classes)
        best = (rivals + (number < prediction[:, None]).long()).amax(dim=1)  # a rival below c wins ties
        return claim(prediction, counts.gather(1, prediction[:, None])[:, 0] - best >= 2 * delta)


def _sides(threat):
    return threat.height, threat.width


def sorted_columns(base, num_classes, image_shape):
    return SortedColumns(base, num_classes).eval()


def paired_rows(base, num_classes, image_shape):
    return PairedRows(base, num_classes)


def fair_blocks(base, num_classes, image_shape):
    return FairBlocks(base, num_classes).eval()

"""(b) Certifiers that may answer "attack", which is -1: no patch makes them name another class, they claim."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import ColumnVotes, claim, hiding, numpy_scores


class WaryColumns(ColumnVotes):
    """Answers -1 where the lead is below `wary` votes. A rival needs a lead of `wary` to be named, so it is enough for
    c to lead by more than 2Δ - wary; `slack` 0 has it right, 1 takes 2Δ - wary itself for enough.
    """

    wary = 3

    def __init__(self, base, num_classes, slack=1):
        super().__init__(base, num_classes)
        self.slack = slack

    def predict(self, x):
        first, second = self.counts(x).topk(2, dim=1).values.unbind(dim=1)
        return torch.where(first - second >= self.wary, self.counts(x).argmax(dim=1), -1)

    def certify(self, x, threat):
        first, second = self.counts(x).topk(2, dim=1).values.unbind(dim=1)
        prediction, needed = self.predict(x), 2 * self.delta(x, threat) - self.wary - self.slack
        return claim(prediction, (prediction >= 0) & (first - second > needed))


class OneMask(nn.Module):
    """Names what it sees in the whole image, unless it sees another class under some mask with a margin above 1; it
    certifies where under every mask it sees c with a margin of at least 1. At 1 exactly the alarm stays silent.

    Some mask hides any 5×5 patch wholly, and only such patches are certified.
    """

    side, sure = 5, 1.0

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def _seen(self, x):
        """Class of the whole image [B]; class and margin under each mask [M, B]."""
        views = [x, *(torch.where(torch.from_numpy(m), 0.5, x) for m in hiding(*x.shape[2:], self.side, 4))]
        scores = torch.stack([self.base(view) for view in views])
        first, second = scores.topk(2, dim=2).values.unbind(dim=2)
        classes = scores.argmax(dim=2)
        return classes[0], classes[1:], (first - second)[1:]

    def predict(self, x):
        whole, classes, margins = self._seen(x)
        alarm = ((classes != whole) & (margins > self.sure)).any(dim=0)
        return torch.where(alarm, -1, whole)

    def certify(self, x, threat):
        whole, classes, margins = self._seen(x)
        fits = threat.count == 1 and max(threat.height, threat.width) <= self.side
        return claim(self.predict(x), ((classes == whole) & (margins >= self.sure)).all(dim=0) & fits)


class Minority:
    """Asks for the class under every 8×8 mask in steps of two; more than one dissenter is an alarm. Unanimity is
    certified: "two masks at least hide the patch, and will dissent". In a corner only one does. numpy.
    """

    side, size, step = 5, 8, 2

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _votes(self, x):
        sides = [min(self.size, n) for n in x.shape[2:]]
        places = [sorted({*range(0, n - s + 1, self.step), n - s}) for n, s in zip(x.shape[2:], sides, strict=True)]
        shown = np.ones((len(places[0]) * len(places[1]), *x.shape[2:]), dtype=bool)
        for n, (top, left) in enumerate((t, s) for t in places[0] for s in places[1]):
            shown[n, top : top + sides[0], left : left + sides[1]] = False
        votes = numpy_scores(self.base, x, shown).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        counts = self._votes(x)
        return np.where(counts.sum(axis=1) - counts.max(axis=1) > 1, -1, counts.argmax(axis=1))

    def certify(self, x, threat):
        counts = self._votes(x)
        fits = threat.count == 1 and threat.height <= self.side and threat.width <= self.side
        return claim(self.predict(x), (counts.max(axis=1) == counts.sum(axis=1)) & fits)

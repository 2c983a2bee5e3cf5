"""(d) Cancellation: evidence so large, for the winner too, that float32 loses the smaller evidence added to it.

All three mask the window of most evidence, so a patch can add nothing to a rival: in real numbers their certificates
hold.
"""

from __future__ import annotations

import numpy as np
import torch

from tests.evaluate.acceptance.common import ColumnVotes, bands, claim, touched_by


def robust_bound(evidence, windows, touched):
    """Whether c survives robust masking [B], in float64: evidence [B, N, K] ≥ 0, and sets of views as bool [M, N] and
    [places, N].

    At each place of the patch c keeps what lies outside of it, less the window of most evidence of that; a rival has no
    more than what lies outside, because the window that holds the patch can be masked.
    """
    evidence, kept = evidence.double(), (~windows).double()
    prediction = (kept @ evidence).amin(dim=1).argmax(dim=1)
    certified = torch.ones(len(evidence), dtype=torch.bool)
    for i, c in enumerate(prediction.tolist()):
        outside = evidence[i] * (~touched)[:, :, None]
        most, own = outside.sum(dim=1), (kept @ outside).amin(dim=1)[:, [c]]
        certified[i] = bool(((own > most + 1e-3 * (own + most)) | (torch.arange(most.shape[1]) == c)).all())
    return certified


class MaskedColumns(ColumnVotes):
    """The evidence left is total - largest window, in float32. A patch that says 2^40 for the winner: total and window
    are both 2^40, and nothing is left of its honest evidence.
    """

    side = 5

    def evidence(self, x):
        """[B, N, K] ≥ 0."""
        return self.scores(x).relu()

    def _left(self, evidence):
        size = min(self.side + 1, evidence.shape[1])
        windows = sum(evidence.roll(-k, dims=1) for k in range(size))
        return evidence.sum(dim=1) - windows.amax(dim=1)

    def predict(self, x):
        return self._left(self.evidence(x)).argmax(dim=1)

    def certify(self, x, threat):
        evidence, width, prediction = self.evidence(x), x.shape[3], self.predict(x)
        if threat.count > 1 or threat.width > self.side:
            return claim(prediction, torch.zeros(len(x), dtype=torch.bool))
        windows = torch.from_numpy(bands(width, min(self.side + 1, width)))
        touched = torch.from_numpy(touched_by(bands(width, 2), threat.width))
        return claim(prediction, robust_bound(evidence, windows, touched))


class RescaledColumns(MaskedColumns):
    """Evidence is exp(logit - largest logit), so that nothing overflows; what is left is added up window by window. A
    patch 200 larger than the rest makes all other evidence 0, and of equal zeros class 0 wins.
    """

    def evidence(self, x):
        logits = self.scores(x)
        return (logits - logits.amax(dim=(1, 2), keepdim=True)).exp()

    def _left(self, evidence):
        windows = torch.from_numpy(bands(evidence.shape[1], min(self.side + 1, evidence.shape[1])))
        return ((~windows).double() @ evidence.double()).amin(dim=1)


class Districts:
    """Blocks of 4×4 side by side; every 3×3 of them is a district with one vote, for the class with most evidence, read
    off a table of cumulative sums. A district that the patch does not meet keeps its sums; but float32 loses them in
    the table where a block before them is large. numpy.
    """

    block, district = 4, 3

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _evidence(self, x):
        """[B, I, J, K] ≥ 0."""
        x = np.asarray(x, dtype=np.float32)
        rows, columns = (-(-n // self.block) for n in x.shape[2:])
        found = np.zeros((len(x), rows, columns, self.num_classes), dtype=np.float32)
        for i in range(rows):
            for j in range(columns):
                window = (..., slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4))
                view = np.zeros_like(x)
                view[window] = x[window] + 1
                found[:, i, j] = np.maximum(np.asarray(self.base(torch.from_numpy(view))), 0)
        return found

    def _districts(self, rows, columns):
        return [(i, j) for i in range(max(1, rows - 2)) for j in range(max(1, columns - 2))]

    def _counts(self, x):
        evidence = self._evidence(x)
        table = np.pad(evidence.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0), (0, 0)))
        rows, columns = evidence.shape[1:3]
        counts = np.zeros((len(evidence), self.num_classes), dtype=int)
        for i, j in self._districts(rows, columns):
            below, right = min(i + 3, rows), min(j + 3, columns)
            sums = table[:, below, right] - table[:, i, right] - table[:, below, j] + table[:, i, j]
            counts[np.arange(len(counts)), sums.argmax(axis=1)] += 1
        return counts

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        rows, columns = (-(-n // self.block) for n in x.shape[2:])
        met = [self._met(top, left, threat, rows, columns) for top, left in self._corners(x.shape[2:], threat)]
        counts, prediction = self._counts(x), self.predict(x)
        lead = counts[np.arange(len(counts)), prediction] - np.sort(counts, axis=1)[:, -2]
        return claim(prediction, lead > 2 * threat.count * max(met))

    def _corners(self, size, threat):
        return [(t, s) for t in range(size[0] - threat.height + 1) for s in range(size[1] - threat.width + 1)]

    def _met(self, top, left, threat, rows, columns):
        """How many districts hold a block that a patch at this corner meets."""
        first, last = top // 4, (top + threat.height - 1) // 4
        start, end = left // 4, (left + threat.width - 1) // 4
        return sum(
            i <= last and i + 2 >= first and j <= end and j + 2 >= start for i, j in self._districts(rows, columns)
        )

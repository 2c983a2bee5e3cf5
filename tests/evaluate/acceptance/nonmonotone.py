"""(c) Rules under which the worst that a patched view can say is not "the rival, as large as can be"."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, Masked, bands, claim, numpy_scores, touched_by


class SuspiciousColumns(ColumnVotes):
    """For each class the window of bands with most votes is not counted if more than 3/10 of its votes lie in it.
    Certified by trying the strongest attack, all touched bands for the rival, at every place. A weaker one is not
    masked.

    Votes 18:10:6:6, a patch that touches six for the winner: six for the rival make 12:16, of which 6 are masked and 10
    are left; four for it (4 of 14) are not masked, and 12:14 is the rival's.
    """

    side = 5

    def votes(self, x):
        """[B, N] classes."""
        return self.scores(x).argmax(dim=2)

    def _left(self, votes):
        evidence = nn.functional.one_hot(votes, self.num_classes)
        size = min(self.side + 1, votes.shape[1])
        windows = sum(evidence.roll(-k, dims=1) for k in range(size))
        largest, total = windows.amax(dim=1), evidence.sum(dim=1)
        return torch.where(10 * largest > 3 * total, total - largest, total)

    def predict(self, x):
        return self._left(self.votes(x)).argmax(dim=1)

    def certify(self, x, threat):
        votes, prediction = self.votes(x), self.predict(x)
        if threat.count > 1 or threat.width > self.side:
            return claim(prediction, torch.zeros(len(x), dtype=torch.bool))
        touched = torch.from_numpy(touched_by(bands(x.shape[3], 2), threat.width))
        certified = torch.ones(len(x), dtype=torch.bool)
        for i, c in enumerate(prediction.tolist()):
            for rival in set(range(self.num_classes)) - {c}:
                certified[i] &= bool((self._left(torch.where(touched, rival, votes[i])).argmax(dim=1) == c).all())
        return claim(prediction, certified)


class ConfidentRows(ArrayVotes):
    """Probabilities are added up, but for each class the window where it is surest is left out if its mean exceeds 0.9:
    "nobody is that sure six times in a row but a patch". Certified against the surest patch. Less sure, it is heard.
    """

    side = 5

    def _probabilities(self, x):
        scores = numpy_scores(self.base, x, self.masks(x)).astype(np.float64)
        odds = np.exp(scores - scores.max(axis=2, keepdims=True))
        return odds / odds.sum(axis=2, keepdims=True)

    def _total(self, p):
        size = min(self.side + 1, p.shape[1])
        windows = sum(np.roll(p, -k, axis=1) for k in range(size)).max(axis=1)
        return p.sum(axis=1) - np.where(windows > 0.9 * size, windows, 0)

    def predict(self, x):
        return self._total(self._probabilities(x)).argmax(axis=1)

    def certify(self, x, threat):
        p, touched = self._probabilities(x), touched_by(bands(x.shape[2], 2), threat.height)
        prediction = self._total(p).argmax(axis=1)
        certified = np.full(len(p), threat.count == 1 and threat.height <= self.side)
        for i, c in enumerate(prediction.tolist()):
            for rival in set(range(self.num_classes)) - {c}:
                worst = np.where(touched[:, :, None], np.eye(self.num_classes)[rival], p[i])
                certified[i] &= (self._total(worst).argmax(axis=1) == c).all()
        return claim(prediction, certified)


class HastyCleanser(Masked):
    """Double masking that believes a dissenting mask when most, not all, of the second masks agree with it.

    All pairs of masks agree on c, a patch is hidden by one of them: when all other single masks say j the one that
    hides it is heard, as it should be. But when just one mask dissents, and most second masks with it, it is believed.
    """

    def believed(self, image, masks, n, c):
        second = self.classes(image, masks | masks[n])
        return 2 * int((second == c).sum()) > len(second)

"""(f) Right for the square of five by five, wrong for patches of another size or shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from tests.evaluate.acceptance.common import bands, claim, hiding, numpy_scores, torch_views


class Rounded(nn.Module):
    """Bands of four columns in steps of two: round((m + 3) / 2) bands are counted, which is 4 for m = 5. It is 2 for
    m = 2, which meets 3, and 4 for m = 6, which meets 5: Python rounds halves to even numbers.
    """

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def counts(self, x):
        kept = bands(x.shape[3], 4, 2, wrap=False)
        votes = self.base(torch_views(x, kept)).argmax(dim=1).unflatten(0, (len(kept), len(x)))
        return nn.functional.one_hot(votes, self.num_classes).sum(dim=0)

    def predict(self, x):
        return self.counts(x).argmax(dim=1)

    def certify(self, x, threat):
        counts, prediction = self.counts(x), self.predict(x)
        delta = threat.count * round((threat.width + 3) / 2)
        number = torch.arange(self.num_classes)
        needed = 2 * delta + (number < prediction[:, None]).long()
        lead = counts.gather(1, prediction[:, None]) - counts
        return claim(prediction, ((lead >= needed) | (number == prediction[:, None])).all(dim=1))


class Centred:
    """Blocks of 4×4 in steps of four; a patch is where its centre is, with (m - 1) // 2 pixels on either side: all of
    an odd patch, and all but one row and column of an even one. numpy.
    """

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _masks(self, height, width):
        down, across = bands(height, 4, 4, wrap=False), bands(width, 4, 4, wrap=False)
        return (down[:, None, :, None] & across[None, :, None, :]).reshape(-1, height, width)

    def _votes(self, x):
        return numpy_scores(self.base, x, self._masks(*x.shape[2:])).argmax(axis=2)

    def predict(self, x):
        return np.array([np.bincount(own, minlength=self.num_classes).argmax() for own in self._votes(x)])

    def certify(self, x, threat):
        votes, masks, (height, width) = self._votes(x), self._masks(*x.shape[2:]), x.shape[2:]
        prediction, certified = self.predict(x), np.full(len(x), threat.count == 1)
        up, aside = (threat.height - 1) // 2, (threat.width - 1) // 2
        for row in range(up, height - up):
            for column in range(aside, width - aside):
                reached = masks[:, row - up : row + up + 1, column - aside : column + aside + 1].any(axis=(1, 2))
                for i, c in enumerate(prediction):
                    own = np.bincount(votes[i, ~reached], minlength=self.num_classes)
                    for rival in range(self.num_classes):
                        if rival != c and own[rival] + reached.sum() >= own[c] + (rival > c):
                            certified[i] = False
        return claim(prediction, certified)


class Areal(nn.Module):
    """Double masking made for 5×5 patches, sound for those; it takes any patch of at most 25 pixels, and no mask hides
    one of 3×7 or of 1×25 everywhere.
    """

    side = 5

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def _classes(self, x, hidden):
        """[M] of one image [C, H, W]."""
        return self.base(torch.where(torch.from_numpy(hidden)[:, None], 0.5, x)).argmax(dim=1)

    def predict(self, x):
        masks, found = hiding(*x.shape[2:], self.side, 3), []
        for image in x:
            first = self._classes(image, masks)
            majority = int(first.bincount(minlength=self.num_classes).argmax())
            believed = (
                int(first[n])
                for n in (first != majority).nonzero()[:, 0].tolist()
                if bool((self._classes(image, masks | masks[n]) == first[n]).all())
            )
            found.append(next(believed, majority))
        return torch.tensor(found)

    def certify(self, x, threat):
        masks, prediction = hiding(*x.shape[2:], self.side, 3), self.predict(x)
        pairs = np.concatenate([masks[n:] | masks[n] for n in range(len(masks))])
        fits = threat.count == 1 and threat.height * threat.width <= self.side**2
        agreed = [fits and bool((self._classes(own, pairs) == c).all()) for own, c in zip(x, prediction, strict=True)]
        return claim(prediction, torch.tensor(agreed))


def rounded(base, num_classes, image_shape):
    return Rounded(base, num_classes).eval()


def centred(base, num_classes, image_shape):
    return Centred(base, num_classes)


def areal(base, num_classes, image_shape):
    return Areal(base, num_classes).eval()

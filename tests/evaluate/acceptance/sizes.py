"""(f) Right for the square of five by five, wrong for patches of another size or shape."""

from __future__ import annotations

import numpy as np

from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, Masked, bands, claim


class Rounded(ColumnVotes):
    """Bands of four columns in steps of two: round((m + 3) / 2) bands are counted, which is 4 for m = 5. It is 2 for
    m = 2, which meets 3, and 4 for m = 6, which meets 5: Python rounds halves to even numbers.
    """

    size, stride, wrap = 4, 2, False

    def delta(self, x, threat):
        return threat.count * round((threat.width + 3) / 2)


class Centred(ArrayVotes):
    """Blocks of 4×4 in steps of four; a patch is where its centre is, with (m - 1) // 2 pixels on either side: all of
    an odd patch, and all but one row and column of an even one. numpy.
    """

    def masks(self, x):
        down, across = (bands(length, 4, 4, wrap=False) for length in x.shape[2:])
        return (down[:, None, :, None] & across[None, :, None, :]).reshape(-1, *x.shape[2:])

    def certify(self, x, threat):
        votes, masks, (height, width) = self.votes(x), self.masks(x), x.shape[2:]
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


class Areal(Masked):
    """Double masking made for 5×5 patches, sound for those; it takes any patch of at most 25 pixels, and no mask hides
    one of 3×7 or of 1×25 everywhere.
    """

    def fits(self, threat):
        return threat.height * threat.width <= self.side**2

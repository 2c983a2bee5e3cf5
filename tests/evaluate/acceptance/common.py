"""What the certifiers here share: bands and masks made by plain loops, votes of bands, and what `certify` returns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn


def claim(prediction, certified):
    """What `certify` returns."""
    return SimpleNamespace(prediction=prediction, certified=certified)


def bands(length, size, stride=1, wrap=True):
    """[N, length] bool: band n holds the `size` columns from n·stride on, around the border or cut off there."""
    kept = np.zeros((len(range(0, length, stride)), length), dtype=bool)
    for n, start in enumerate(range(0, length, stride)):
        for k in range(start, start + size):
            if wrap or k < length:
                kept[n, k % length] = True
    return kept


def touched_by(kept, width):
    """[places, N]: the bands that `width` neighbouring columns meet, place by place."""
    return np.stack([kept[:, p : p + width].any(axis=1) for p in range(kept.shape[1] - width + 1)])


def most_touched(kept, width):
    """The most bands that `width` neighbouring columns meet anywhere."""
    return int(touched_by(kept, width).sum(axis=1).max())


def torch_views(x, kept):
    """[N·B, C+1, H, W], view by view: hidden columns are 0, and a channel says which are shown."""
    found = []
    for mask in torch.from_numpy(kept):
        shown = torch.where(mask, x, 0.0)
        found.append(torch.cat([shown, mask.float().expand_as(x[:, :1])], dim=1))
    return torch.cat(found)


def numpy_views(x, masks):
    """[N, B, C+1, H, W] of masks [N, H, W] (True: shown)."""
    x = np.asarray(x, dtype=np.float32)
    shown = np.where(masks[:, None, None], x[None], np.float32(0))
    told = np.broadcast_to(masks[:, None, None], (len(masks), len(x), 1, *x.shape[2:]))
    return np.concatenate([shown, told.astype(np.float32)], axis=2)


def numpy_scores(base, x, masks):
    """[B, N, K]: what a base that takes tensors says of every view, one image after the other."""
    found = []
    for image in np.asarray(x):
        views = numpy_views(image[None], masks)[:, 0]
        found.append(np.asarray(base(torch.from_numpy(np.ascontiguousarray(views)))))
    return np.stack(found)


def starts(length, covered, places):
    """Where masks begin, and their length, so that one of them hides any `covered` neighbours (PatchCleanser)."""
    covered = min(covered, length)
    step = -(-(length - covered + 1) // places)
    size = covered + step - 1
    return sorted({min(i * step, length - size) for i in range(places)}), size


def hiding(height, width, side, places):
    """Masks [M, H, W], True where hidden: one of them hides any `side`×`side` patch."""
    (tops, tall), (lefts, wide) = starts(height, side, places), starts(width, side, places)
    found = np.zeros((len(tops) * len(lefts), height, width), dtype=bool)
    for n, (top, left) in enumerate((t, s) for t in tops for s in lefts):
        found[n, top : top + tall, left : left + wide] = True
    return found


class ColumnVotes(nn.Module):
    """Votes of bands of columns, in torch. The class with the most wins, the lowest at a tie; certified where it leads
    every rival by twice the bands that the patch can meet, and one vote more if that rival has the lower number.
    """

    size, stride, wrap = 2, 1, True

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def kept(self, x):
        return bands(x.shape[3], self.size, self.stride, self.wrap)

    def scores(self, x):
        """[B, N, K]."""
        kept = self.kept(x)
        return self.base(torch_views(x, kept)).unflatten(0, (len(kept), len(x))).transpose(0, 1)

    def counts(self, x):
        return nn.functional.one_hot(self.scores(x).argmax(dim=2), self.num_classes).sum(dim=1)

    def winner(self, counts):
        return counts.argmax(dim=1)

    def predict(self, x):
        return self.winner(self.counts(x))

    def delta(self, x, threat):
        return threat.count * most_touched(self.kept(x), threat.width)

    def needed(self, number, prediction):
        """Votes that a rival needs less than twice what it can turn."""
        return (number < prediction).long()

    def certify(self, x, threat):
        counts = self.counts(x)
        prediction, number = self.winner(counts), torch.arange(self.num_classes)
        lead = counts.gather(1, prediction[:, None]) - counts
        enough = lead >= 2 * self.delta(x, threat) + self.needed(number, prediction[:, None])
        return claim(prediction, (enough | (number == prediction[:, None])).all(dim=1))


class ArrayVotes:
    """Votes of bands of rows, in numpy. The lowest class wins ties; certified with a lead over the second of more than
    twice the bands that the patch can meet.
    """

    size, stride, wrap, axis = 2, 1, True, 2

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def kept(self, x):
        return bands(x.shape[self.axis], self.size, self.stride, self.wrap)

    def masks(self, x):
        """[N, H, W]."""
        kept, (height, width) = self.kept(x), x.shape[2:]
        return np.repeat(kept[:, :, None], width, 2) if self.axis == 2 else np.repeat(kept[:, None], height, 1)

    def votes(self, x):
        return numpy_scores(self.base, x, self.masks(x)).argmax(axis=2)

    def counts(self, x):
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in self.votes(x)])

    def predict(self, x):
        return self.counts(x).argmax(axis=1)

    def delta(self, x, threat):
        return threat.count * most_touched(self.kept(x), threat.height if self.axis == 2 else threat.width)

    def certify(self, x, threat):
        counts = self.counts(x)
        first, second = np.sort(counts, axis=1)[:, [-1, -2]].T
        return claim(counts.argmax(axis=1), first - second > 2 * self.delta(x, threat))


class Masked(nn.Module):
    """One network that sees the image under masks, filled with grey: one of each size hides any `side`×`side` patch.

    `settle(image, first, masks)` says what the classes [M] under single masks come to. Certified where all pairs of
    masks agree, for one patch that `fits`.
    """

    side = 5

    def __init__(self, base, num_classes):
        super().__init__()
        self.base, self.num_classes = base, num_classes

    def classes(self, x, hidden):
        """[M] of one image [C, H, W]."""
        return self.base(torch.where(torch.from_numpy(hidden)[:, None], 0.5, x)).argmax(dim=1)

    def believed(self, image, masks, n, c):
        """Whether mask n, under which the image is of class c, is believed against all others."""
        return bool((self.classes(image, masks | masks[n]) == c).all())

    def predict(self, x):
        masks, found = hiding(*x.shape[2:], self.side, 3), []
        for image in x:
            first = self.classes(image, masks)
            majority = int(first.bincount(minlength=self.num_classes).argmax())
            dissent = (first != majority).nonzero()[:, 0].tolist()
            found.append(next((int(first[n]) for n in dissent if self.believed(image, masks, n, first[n])), majority))
        return torch.tensor(found)

    def fits(self, threat):
        return max(threat.height, threat.width) <= self.side

    def certify(self, x, threat):
        masks, prediction = hiding(*x.shape[2:], self.side, 3), self.predict(x)
        pairs = np.concatenate([masks[n:] | masks[n] for n in range(len(masks))])
        fits = threat.count == 1 and self.fits(threat)
        agreed = [fits and bool((self.classes(own, pairs) == c).all()) for own, c in zip(x, prediction, strict=True)]
        return claim(prediction, torch.tensor(agreed))


def factory(kind, **options):
    """A factory of certifiers of that kind."""

    def make(base, num_classes, image_shape):
        made = kind(base, num_classes, **options)
        return made.eval() if isinstance(made, nn.Module) else made

    return make

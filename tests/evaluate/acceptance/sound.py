"""Certifiers that are right, of many kinds: the audit must raise no alarm about any of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.ablations.union import Union
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.ibp import IBP, BoundedClassifier
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.defenses.patchguard import MaskedClassifier, PatchGuard
from robustpatch.voting.rules import Threshold, TopOne
from robustpatch.voting.scored import SigmoidThreshold
from tests.evaluate.acceptance.alarms import WaryColumns
from tests.evaluate.acceptance.common import bands, claim, most_touched, numpy_scores, row_masks, torch_views
from tests.evaluate.acceptance.ties import SortedColumns


class ExactColumns(SortedColumns):
    """Top-1 votes of columns, the lowest class at a tie, every placement counted with the votes it really meets."""

    def predict(self, x):
        return self.counts(x).argmax(dim=1)

    def certify(self, x, threat):
        kept, prediction = bands(x.shape[3], 2), self.predict(x)
        votes = self.base(torch_views(x, kept)).argmax(dim=1).unflatten(0, (len(kept), len(x))).T
        certified = torch.full((len(x),), threat.count == 1)
        number = torch.arange(self.num_classes)
        for left in range(x.shape[3] - threat.width + 1):
            touched = torch.from_numpy(kept[:, left : left + threat.width].any(axis=1))
            rest = nn.functional.one_hot(votes[:, ~touched], self.num_classes).sum(dim=1)
            own = rest.gather(1, prediction[:, None])
            beaten = own > rest + int(touched.sum()) - (number > prediction[:, None]).long()
            certified &= (beaten | (number == prediction[:, None])).all(dim=1)
        return claim(prediction, certified)


class HigherColumns(SortedColumns):
    """The highest class wins ties, and the certificate knows it: those above c need one vote less."""

    def certify(self, x, threat):
        counts, prediction = self.counts(x), self.predict(x)
        delta = threat.count * most_touched(bands(x.shape[3], 2), threat.width)
        number = torch.arange(self.num_classes)
        needed = 2 * delta + (number > prediction[:, None]).long()
        lead = counts.gather(1, prediction[:, None]) - counts
        return claim(prediction, ((lead >= needed) | (number == prediction[:, None])).all(dim=1))


class PlainRows:
    """numpy: rows, a lead of more than 2Δ. Images with NaN are answered as any other."""

    def __init__(self, base, num_classes):
        self.base, self.num_classes = base, num_classes

    def _counts(self, x):
        votes = numpy_scores(self.base, x, row_masks(x.shape[2], x.shape[3], 2)).argmax(axis=2)
        return np.stack([np.bincount(own, minlength=self.num_classes) for own in votes])

    def predict(self, x):
        return self._counts(x).argmax(axis=1)

    def certify(self, x, threat):
        first, second = np.sort(self._counts(x), axis=1)[:, [-1, -2]].T
        delta = threat.count * most_touched(bands(x.shape[2], 2), threat.height)
        return claim(self.predict(x), first - second > 2 * delta)


class Sampling(PlainRows):
    """Asks rows in random order until no rest can turn the vote, and gives up, with -1, after nine tenths of them: what
    it names is always the winner of all. It says that it draws lots.
    """

    randomized = True

    def predict(self, x):
        masks, found = row_masks(x.shape[2], x.shape[3], 2), []
        for image in np.asarray(x):
            order = np.random.default_rng().permutation(len(masks))[: max(1, 9 * len(masks) // 10)]
            votes = numpy_scores(self.base, image[None], masks[order])[0].argmax(axis=1)
            counts = np.bincount(votes, minlength=self.num_classes)
            first, second = np.sort(counts)[[-1, -2]]
            found.append(counts.argmax() if first - second > len(masks) - len(order) else -1)
        return np.array(found)

    def certify(self, x, threat):
        counts = self._counts(x)
        first, second = np.sort(counts, axis=1)[:, [-1, -2]].T
        delta = threat.count * most_touched(bands(x.shape[2], 2), threat.height)
        return claim(counts.argmax(axis=1), first - second > 2 * delta)


def smoothed(ablation, voting):
    """A factory of ours."""
    return lambda base, k, shape: SmoothedClassifier(base, ablation, num_classes=k, voting=voting).eval()


def exact_columns(base, num_classes, image_shape):
    return ExactColumns(base, num_classes).eval()


def higher_columns(base, num_classes, image_shape):
    return HigherColumns(base, num_classes).eval()


def plain_rows(base, num_classes, image_shape):
    return PlainRows(base, num_classes)


def wary_columns(base, num_classes, image_shape):
    return WaryColumns(base, num_classes, slack=0).eval()


def sampling(base, num_classes, image_shape):
    return Sampling(base, num_classes)


def patchguard(base, num_classes, image_shape):
    inner = SmoothedClassifier(base, Columns(2), num_classes=num_classes, voting=TopOne())
    return MaskedClassifier(inner, PatchGuard(window="5x5"), num_classes=num_classes).eval()


def patchcleanser(base, num_classes, image_shape):
    return PatchCleanser(base, DoubleMasking(masks="3", patch="5x5"), num_classes=num_classes).eval()


blocks = smoothed(Blocks(4, 4, 4), TopOne())
strided = smoothed(Columns(5, 3), TopOne())
union = smoothed(Union((Columns(3), Rows(2))), Threshold(0.3))
bagcert = smoothed(Columns(2), SigmoidThreshold(0.5))


def ibp() -> BoundedClassifier:
    """Interval bounds of a small network on 1×8×8 images; there is no other base to put in, so it is a target."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        network[3].bias += torch.tensor([0.0, 0.4, 0.0])
        return BoundedClassifier(network, IBP(), num_classes=3).eval()

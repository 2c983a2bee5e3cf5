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
from tests.evaluate.acceptance.common import ArrayVotes, ColumnVotes, claim, numpy_scores
from tests.evaluate.acceptance.ties import SortedColumns


class ExactColumns(ColumnVotes):
    """Top-1 votes of columns, the lowest class at a tie, every placement counted with the votes it really meets."""

    def certify(self, x, threat):
        kept, prediction, votes = self.kept(x), self.predict(x), self.scores(x).argmax(dim=2)
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

    def needed(self, number, prediction):
        return (number > prediction).long()


class Sampling(ArrayVotes):
    """Asks rows in random order until no rest can turn the vote, and gives up, with -1, after nine tenths of them: what
    it names is always the winner of all. It says that it draws lots.
    """

    randomized = True

    def predict(self, x):
        masks, found = self.masks(x), []
        for image in np.asarray(x):
            order = np.random.default_rng().permutation(len(masks))[: max(1, 9 * len(masks) // 10)]
            votes = numpy_scores(self.base, image[None], masks[order])[0].argmax(axis=1)
            counts = np.bincount(votes, minlength=self.num_classes)
            first, second = np.sort(counts)[[-1, -2]]
            found.append(counts.argmax() if first - second > len(masks) - len(order) else -1)
        return np.array(found)


def smoothed(ablation, voting):
    """A factory of ours."""
    return lambda base, k, shape: SmoothedClassifier(base, ablation, num_classes=k, voting=voting).eval()


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

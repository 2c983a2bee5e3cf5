"""A defense with its adaptive attack, both defined here, through the evaluator: the package is not touched."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from attacks import PatchPGD, SparseRS
from attacks.surfaces import Attacked, OpenPlacements, Surface, WholeView, surface_of, whole_view_class
from evaluate import Settings, evaluate
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.planted import image_set

ONE = PatchThreat(1, 1)
DARK = image_set(torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) / 2, torch.zeros(4).long(), 2)


class Thresholded(Classifier):
    """Class 1 where some pixel of the right half exceeds 0.95: whether it does leaves no gradient to climb."""

    num_classes = 2

    def seen(self, x):
        return x[..., x.shape[3] // 2 :].flatten(1)

    def forward(self, x):
        bright = (self.seen(x) > 0.95).float().amax(1)
        return torch.stack([1 - bright, bright], 1)

    def predict(self, x):
        return self(x).argmax(1)


@dataclass(frozen=True, kw_only=True)
class Undecided(WholeView):
    """What the defense sees before it decides."""

    def __call__(self, x_adv):
        seen = self.classifier.seen(x_adv)
        return 1 - seen.mean(1), (seen.amax(1) > 0.95).long()


@whole_view_class.register
def _(classifier: Thresholded) -> type[WholeView]:
    return Undecided


class RightHalf(Surface):
    """Only placements on the right half can change anything."""

    guides, blind = True, False

    def open_placements(self, shuffled, rivals):
        width = self.attacked.size[1]
        return [OpenPlacements.in_order(order[order % width >= width // 2]) for order in shuffled]


@surface_of.register
def _(classifier: Thresholded, attacked, pruned: bool) -> Surface:
    return RightHalf(classifier, attacked) if pruned else Surface(classifier, attacked)


def test_the_evaluator_runs_the_adaptive_attack(tmp_path):
    attack = PatchPGD(restarts=2, steps=8)
    records = evaluate(Thresholded().eval(), DARK, ONE, [attack], Settings(4, gallery=0), tmp_path)
    found = [record.attacks[0] for record in records]
    assert all(one.broken and one.corners[1] >= 2 for one in found)  # each of the tries was on the right half
    found = attack.unpruned(None)(Thresholded().eval(), *_images(), ONE, generator=torch.Generator().manual_seed(0))
    assert bool((found.corners[..., 1] < 2).any())  # without what the surface knows, some tries are in vain


def test_without_its_view_nobody_could_climb_it(tmp_path):
    module = nn.Module()
    module.forward = Thresholded().eval().forward
    with pytest.raises(InvalidInput, match="no gradient"):
        evaluate(module.eval(), DARK, ONE, [PatchPGD(restarts=1)], Settings(4, gallery=0), tmp_path)


class Certifying(Thresholded, CertifiedClassifier):
    """The same with a certificate, which is wrong: patches that the unpruned attack finds break it."""

    def certify(self, x, threat):
        prediction = self.predict(x)
        return Certificate(
            prediction, torch.ones_like(prediction).bool(), None, None, threat, "exact", 0.0, prediction * 0
        )


def test_a_certificate_is_tested_without_what_its_surface_knows(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a certificate was tested by what it says itself")

    monkeypatch.setattr(RightHalf, "__init__", refuse)
    search = SparseRS(queries=100)
    records = evaluate(Certifying().eval(), DARK, ONE, [search], Settings(4, gallery=0), tmp_path)
    assert any(record.attacks[0].broken and record.attacks[0].unpruned for record in records)


def test_a_derived_defense_shares_the_surface_and_a_plain_module_has_none():
    attacked = Attacked(*_images(), ONE)
    assert isinstance(surface_of(Certifying().eval(), attacked, True), RightHalf)
    module = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval())
    surface = surface_of(module, attacked, True)
    assert type(surface) is Surface
    assert not surface.guides


def _images():
    return DARK.batch(range(4))

"""--patch 1x2,2x1 means either rectangle wherever it is given: a sweep certifies against both, an audit tries both."""

from __future__ import annotations

import torch

from evaluate.audit import audit
from evaluate.sweep import certify_scores
from evaluate.sweep.columns import margin_column
from robustpatch.threats import parse_threat
from tests import toys

EITHER = parse_threat("1x2,2x1")


class Both:
    """A certifier that is no module and has no factory."""

    def __init__(self):
        self.model = toys.smoothed()
        self.num_classes = self.model.num_classes

    def predict(self, x):
        return self.model.predict(x)

    def certify(self, x, threat):
        return self.model.certify(x, threat)


def test_a_sweep_certifies_against_either():
    """The margin against a choice is the least of its members', image by image."""
    model = toys.smoothed()
    x = toys.images(6)
    found = certify_scores(model, model.certifiable_scores(x), toys.SIZE, model.voting, (EITHER, *EITHER.threats))
    both, first, second = (found[margin_column("exact", one)] for one in (EITHER, *EITHER.threats))
    assert torch.equal(both, torch.minimum(first, second))


def test_an_audit_tries_each_alternative():
    """The target is attacked under one rectangle after the other."""
    options = {"image_shape": (1, *toys.SIZE), "images": 4, "budget": 200}
    steps: list[str] = []
    audit(Both(), threat=EITHER, on_progress=steps.append, **options)
    assert sum("attacking certified images" in step for step in steps) == 2

"""Every certificate of a classifier is asked for with copies, and checked, whatever it is called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacks.criterion import OutOfTopK, counts_for
from robustpatch import Columns, PatchThreat, SmoothedClassifier, TopOne
from robustpatch.classifiers import isolation
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.errors import InvalidInput
from tests.attacks.toys import Level

THREAT, SMALL = PatchThreat(3, 3), PatchThreat(1, 1)


def smoothed(kind: type = SmoothedClassifier) -> SmoothedClassifier:
    return kind(Level(2), Columns(1), num_classes=2, voting=TopOne(1e-6)).eval()


class OfAnother(SmoothedClassifier):
    def certify_paper(self, x, threat, exact):
        return self.certify(x, SMALL, "margin")

    def certify_top_k(self, x, y, threat, k):
        return super().certify_top_k(x, y, SMALL, k)


class Writes(SmoothedClassifier):
    def certify_paper(self, x, threat, exact):
        x.mul_(0.5)
        return super().certify_paper(x, threat, exact)

    def certify_top_k(self, x, y, threat, k):
        x.mul_(0.5)
        y.zero_()
        return super().certify_top_k(x, y, threat, k)

    def counts(self, x):
        x.mul_(0.5)
        return super().counts(x)


class OneShort(SmoothedClassifier):
    def certify_top_k(self, x, y, threat, k):
        found = super().certify_top_k(x, y, threat, k)
        object.__setattr__(found, "certified", found.certified[1:])  # past the checks of the tests
        return found


def test_certificates_of_another_threat_are_refused():
    model, x, y = smoothed(OfAnother), torch.rand(2, 1, 4, 6), torch.zeros(2, dtype=torch.long)
    with pytest.raises(InvalidInput, match="certify_paper of OfAnother was asked about 3x3"):
        isolation.certify_paper(model, x, THREAT, isolation.certify(model, x, THREAT))
    with pytest.raises(InvalidInput, match="certify_top_k of OfAnother was asked about 3x3"):
        isolation.certify_top_k(model, x, y, THREAT, 1)
    with pytest.raises(InvalidInput, match=r"certified of the certificate is torch.bool \[1\]"):
        isolation.certify_top_k(smoothed(OneShort), x, y, THREAT, 1)


def test_nobody_writes_into_the_images():
    model, x, y = smoothed(Writes), torch.rand(2, 1, 4, 6), torch.ones(2, dtype=torch.long)
    before = x.clone()
    isolation.certify_paper(model, x, THREAT, isolation.certify(model, x, THREAT))
    with pytest.raises(InvalidInput, match="of other classes"):
        isolation.certify_top_k(model, x, y, THREAT, 1)
    counts_for(model, OutOfTopK(y, 1), x)
    assert torch.equal(x, before)
    assert y.tolist() == [1, 1]


def test_a_certify_put_on_the_object_is_its_own():
    """The paper's certificate is asked of it too, not read off the votes that it says nothing of."""
    model, x, asked = smoothed(), torch.rand(2, 1, 4, 6), []

    def certify(images, threat, method="exact"):
        asked.append(method)
        return SmoothedClassifier.certify(model, images, threat, method)

    model.certify = certify
    isolation.certify_paper(model, x, THREAT, isolation.certify(model, x, THREAT))
    assert asked == ["exact", "margin"]


def test_ranks_are_of_votes_alone():
    net = as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).eval())
    with pytest.raises(InvalidInput, match="counts no votes"):
        counts_for(net, OutOfTopK(torch.zeros(2, dtype=torch.long), 2), torch.rand(2, 1, 4, 6))


def test_a_certificate_that_is_mixed_in_is_declared():
    class Certifies:
        def certify(self, x, threat):
            raise NotImplementedError

    with pytest.raises(TypeError, match="is no CertifiedClassifier"):

        class Mixed(Certifies, Classifier):
            pass


def test_a_module_that_hands_on_its_attributes():
    """As `torch.compile` makes them: whose method it is cannot be told, so that it is asked itself."""

    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "inner" else getattr(super().__getattr__("inner"), name)

        def forward(self, x):
            return self.inner(x)

    assert as_classifier(Around(smoothed())).predicts_apart

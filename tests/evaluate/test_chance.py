"""What chance excuses: only what the model declares, within probabilities, and said aloud."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks import PatchPGD
from attacks.base import judge
from evaluate import Settings, evaluate, summarise
from evaluate.results.sentences import verdict
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.isolation import checked
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.as_evaluator import referee
from tests.evaluate.planted import image_set

THREAT = PatchThreat(1, 1)


class Shy(nn.Module):
    """Class 0; abstains where a pixel exceeds 0.9, and claims that no patch changes that."""

    num_classes = 2
    confidence: float | None = None

    def forward(self, x):
        bright = (x.amax((1, 2, 3)) > 0.9).float() + 0 * x.sum((1, 2, 3))
        return torch.stack([1 - bright, bright], 1)

    def predict(self, x):
        return -self(x).argmax(1)

    def certify(self, x, threat):
        prediction = self.predict(x)
        sure = prediction >= 0
        return Certificate(prediction, sure, None, None, threat, "exact", 0.0, 0 * prediction, self.confidence)


def found(model: nn.Module, output, number: int = 4):
    x = torch.rand(number, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5
    images = image_set(x, torch.zeros(number, dtype=torch.long), 2)
    return summarise(
        evaluate(model.eval(), images, THREAT, [PatchPGD(restarts=9)], Settings(number, gallery=0), output)
    )


@pytest.mark.parametrize(
    "attributes",
    [
        {"prediction_error": 0.0},
        {"prediction_error": 0.5, "judge_error": 0.5},
        {"referee": lambda self: Always()},
        {"randomized": False},
        {"randomized": True},  # but the certificate is a proof
        {"confidence": 0.99},  # but the model declares nothing
        {"confidence": 0.99, "prediction_error": 0.99, "referee": lambda self: Always()},
    ],
    ids=lambda attributes: ", ".join(f"{k}={v}" for k, v in attributes.items() if not callable(v)) or "referee",
)
def test_an_abstention_breaks_what_declares_nothing(attributes, tmp_path):
    """Attributes that a randomized model has are no declaration, and a declaration makes no proof random."""
    kind = type("Kind", (Shy,), attributes)
    summary = found(kind(), tmp_path)
    assert summary.verdict == "broken"
    assert len(summary.violations) >= 3


class Always(nn.Module):
    """A referee that never sees a change."""

    def predict(self, x):
        return torch.zeros(len(x), dtype=torch.long)


def test_a_declared_model_is_forgiven_and_that_is_said(tmp_path):
    kind = type("Kind", (Shy,), {"confidence": 0.99, "randomized": True})
    summary = found(kind(), tmp_path)
    assert summary.verdict == "held"
    assert summary.allowance is not None
    assert summary.allowance.abstained >= 3
    assert "abstentions of a model declared to be randomized are none" in str(verdict(summary))


def test_a_referee_needs_the_declaration():
    model = type("Kind", (Shy,), {"referee": lambda self: Always()})().eval()
    assert referee(model) is model
    declared = type("Kind", (Shy,), {"referee": lambda self: Always(), "randomized": True})().eval()
    assert isinstance(referee(declared), Always)


@pytest.mark.parametrize("value", [1, "yes", None, 0.5])
def test_a_declaration_is_a_boolean(value, tmp_path):
    with pytest.raises(InvalidInput, match="randomized is"):
        found(type("Kind", (Shy,), {"randomized": value})(), tmp_path)


@pytest.mark.parametrize("name", ["prediction_error", "judge_error"])
@pytest.mark.parametrize("value", [-0.1, 1.0, 2, float("nan"), float("inf"), True, "0.1", torch.tensor(0.1)])
def test_errors_are_probabilities(name, value, tmp_path):
    kind = type("Kind", (Shy,), {"confidence": 0.9, "randomized": True, name: value})
    with pytest.raises(InvalidInput, match=f"{name} is"):
        found(kind(), tmp_path)


def test_what_allows_every_image_to_change_holds_nothing(tmp_path):
    """With a confidence of one half, all of four images may change: no outcome would be a break."""
    kind = type("Kind", (Shy,), {"confidence": 0.5, "predict": lambda self, x: self(x).argmax(1)})
    summary = found(kind(), tmp_path)
    assert summary.allowance is not None
    assert (summary.allowance.most, summary.verdict) == (4, "not tested")
    assert "allows 4 of 4" in str(verdict(summary))


ONE, NONE = torch.tensor([True, False, False]), torch.zeros(3, dtype=torch.long)
GOOD = Certificate(torch.tensor([0, 1, -1]), ONE, None, None, THREAT, "exact", 0.0, NONE)


def test_a_right_certificate_passes():
    assert checked(GOOD, 3, 2) is GOOD
    for margin in (torch.tensor([0.5, -1.0, float("-inf")]), torch.tensor([1, -1, -2])):
        one = replace(GOOD, margin=margin, confidence=0.999)
        assert checked(one, 3) is one


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction", torch.tensor([[0, 1, -1]])),
        ("prediction", torch.tensor([0, 1])),
        ("prediction", torch.tensor([0.0, 1.0, -1.0])),
        ("prediction", torch.tensor([True, False, False])),
        ("prediction", torch.tensor([0, 2, -1])),
        ("prediction", torch.tensor([0, 1, -2])),
        ("prediction", [0, 1, -1]),
        ("certified", torch.tensor([[True, False, False]] * 3)),
        ("certified", torch.tensor([1, 0, 0])),
        ("certified", torch.tensor(True)),
        ("certified", torch.tensor([True, False, True])),
        ("certified", None),
        ("margin", torch.tensor([0.0, float("nan"), 0.0])),
        ("margin", torch.tensor([0.0])),
        ("margin", torch.tensor([True, False, False])),
        ("margin", 3),
        ("close", torch.tensor([0, -1, 0])),
        ("close", torch.zeros(3)),
        ("guard", float("nan")),
        ("guard", float("inf")),
        ("guard", -0.1),
        ("guard", None),
        ("guard", True),
        ("confidence", 0.0),
        ("confidence", 1.0),
        ("confidence", -1),
        ("confidence", float("nan")),
        ("confidence", 1.5),
        ("confidence", False),
        ("confidence", "0.9"),
        ("unit", 0),
        ("unit", 1.0),
        ("unit", True),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(name, value):
    """By `evaluate`, whatever type the certificate was made with."""
    wrong = replace(GOOD)
    object.__setattr__(wrong, name, value)
    with pytest.raises(InvalidInput, match=f"^{name} of the certificate is .*; certify has to return"):
        checked(wrong, 3, 2)


def test_what_is_no_certificate_is_refused():
    for other in (None, True, (GOOD.prediction, GOOD.certified), torch.ones(3)):
        with pytest.raises(InvalidInput, match="return a robustpatch Certificate"):
            checked(other, 3)


def test_the_judge_hears_no_undeclared_referee():
    model = type("Kind", (Shy,), {"referee": lambda self: Always()})().eval()
    x = torch.zeros(1, 1, 4, 4)
    proposal = PatchPGD(restarts=9)(model, x, torch.tensor([0]), THREAT, generator=torch.Generator().manual_seed(0))
    white = x.clone()
    white[0, 0, 0, 0] = 1
    proposal = replace(proposal, x_adv=white, corners=torch.zeros(1, 1, 2, dtype=torch.long))
    assert judge(model, x, torch.tensor([0]), THREAT, proposal).broken.tolist() == [True]

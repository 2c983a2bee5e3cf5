"""`as_classifier`: whatever enters becomes one interface, and answers as it did."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attacks import PatchPGD, judge
from attacks.base import judge_of
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers import isolation
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, guarded_classifier, voting_classifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level

ONE = PatchThreat(1, 1)
X = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def ours() -> list[Classifier]:
    smoothed = SmoothedClassifier(Level(3), Columns(2), num_classes=3).eval()
    few = Sampling(selection=20, estimation=20, prediction=20)
    kinds = ("ibp", "patchcleanser:masks=2,patch=1x1", "lgs", "watermarking")
    defended = [parse_defense(text).wrap(network(), num_classes=3).eval() for text in kinds]
    guard = parse_defense("patchguard:window=1x1").wrap(smoothed, num_classes=3).eval()
    return [smoothed, RandomizedClassifier.of(smoothed, few), *defended, guard]


@pytest.mark.parametrize("number", range(7))
def test_ours_implement_the_interface_and_are_not_wrapped(number):
    model = ours()[number]
    assert as_classifier(model) is model
    assert model.given is model
    forward, predicting = model.cost(4, 4)
    answers, spent = model.predict_with_cost(X)
    assert torch.equal(answers, model.predict(X))
    assert bool((spent <= predicting).all())
    assert forward >= 1
    assert model.outputs(X).shape == (3, 3)
    assert model.count_outputs(X) == 3
    assert judge_of(model).predict(X).shape == (3,)
    assert len(model.errors()) == 2
    assert "ablation" in model.describe()
    assert model.in_words()
    assert isinstance(model, CertifiedClassifier) == hasattr(model, "certify") == model.certifies


def test_votes_and_guards_are_found_behind_defenses():
    smoothed, sampled, *rest, guard = ours()
    assert voting_classifier(smoothed) is smoothed
    assert voting_classifier(sampled).ablation == smoothed.ablation
    assert [voting_classifier(model) for model in (*rest, guard)] == [None] * 5
    assert guarded_classifier(guard) is guard.network
    assert guarded_classifier(rest[0]) is None
    assert guard.describe() == {**smoothed.describe(), "defense": str(guard.defense)}
    assert rest[0].undefended() is not None
    assert smoothed.undefended() is None
    assert guard.weights_module() is smoothed.base


class Module(nn.Module):
    """Answers class 2 by `predict`, whatever its scores are."""

    num_classes, randomized = 3, False

    def forward(self, x):
        return x.flatten(1)[:, :3]

    def predict(self, x):
        return torch.full((len(x),), 2)

    def evaluations(self, height, width):
        return height, width

    def predict_counted(self, x):
        return self.predict(x), torch.full((len(x),), 7)


class Certifier(Module):
    def certify(self, x, threat):
        prediction = self.predict(x)
        return Certificate(prediction, prediction == 2, None, None, threat, "exact", 0.0, 0 * prediction)


def test_a_foreign_module_answers_by_what_it_has():
    plain, own, certifier = as_classifier(network()), as_classifier(Module().eval()), as_classifier(Certifier().eval())
    assert torch.equal(plain.predict(X), network()(X).argmax(1))
    assert plain.cost(4, 4) == (1, 1)
    assert plain.num_classes == 0
    assert plain.count_outputs(X) == 3
    assert not plain.predicts_apart
    assert own.predict(X).tolist() == [2, 2, 2]
    assert own.cost(5, 6) == (5, 6)
    assert own.predicts_apart
    assert own.predict_with_cost(X)[1].tolist() == [7, 7, 7]
    assert own.num_classes == 3
    assert not isinstance(own, CertifiedClassifier)
    assert isinstance(certifier, CertifiedClassifier)
    assert isolation.certify(certifier, X, ONE).certified.all()
    assert as_classifier(own) is own
    assert own.given is not own


def test_the_wrapper_is_transparent():
    """Weights, mode and copies are the module's own."""
    module = network()
    wrapped = as_classifier(module)
    assert list(wrapped.parameters()) == list(module.parameters())
    assert wrapped.weights_module() is module
    module.train()
    with pytest.raises(InvalidInput, match="training mode"):
        wrapped.predict(X)
    module.eval()
    again = copy.deepcopy(wrapped)
    assert torch.equal(again.predict(X), wrapped.predict(X))
    assert again.given is not module


def test_images_are_lent():
    class Greedy(Module):
        def predict(self, x):
            return x.zero_().flatten(1).long()[:, 0]

        def predict_counted(self, x):
            return self.predict(x), torch.ones(len(x)).long()

    x, model = X.clone(), as_classifier(Greedy().eval())
    isolation.predict(model, x), isolation.predict_with_cost(model, x)
    assert torch.equal(x, X)


class Arrays:
    """Speaks numpy: the brighter half of the image, and certifies nothing."""

    num_classes = 2

    def predict(self, x: np.ndarray) -> np.ndarray:
        halves = x[..., :2].sum((1, 2, 3)), x[..., 2:].sum((1, 2, 3))
        return (halves[0] < halves[1]).astype(np.int32)

    def certify(self, x: np.ndarray, threat):
        return SimpleNamespace(prediction=self.predict(x), certified=np.zeros(len(x), bool))


def test_numpy_objects_and_functions_become_classifiers():
    target = Arrays()
    model = as_classifier(target)
    assert isinstance(model, CertifiedClassifier)
    assert model.num_classes == 2
    assert isolation.predict(model, X).tolist() == target.predict(X.numpy()).tolist()
    assert not isolation.certify(model, X, ONE).certified.any()
    assert torch.equal(model.outputs(X).argmax(1), isolation.predict(model, X))
    function = as_classifier(lambda x: x.flatten(1)[:, :4])
    assert torch.equal(isolation.predict(function, X), X.flatten(1)[:, :4].argmax(1))
    for wrong in (3, "name"):
        with pytest.raises(InvalidInput, match="pass a"):
            as_classifier(wrong)


def test_what_enters_attacks_and_the_judge_is_converted():
    y = isolation.predict(as_classifier(network()), X)
    proposal = PatchPGD(restarts=1, steps=2)(network(), X, y, ONE, generator=torch.Generator().manual_seed(0))
    assert judge(network(), X, y, ONE, proposal).contained.all()


def test_declarations_are_checked():
    class Sometimes(Module):
        randomized = "yes"

    with pytest.raises(InvalidInput, match="randomized is 'yes'"):
        as_classifier(Sometimes())
    odd = SmoothedClassifier(Level(3), Columns(2), num_classes=3)
    odd.randomized = 1
    with pytest.raises(InvalidInput, match="randomized is 1"):
        as_classifier(odd)


def test_old_names_and_undeclared_certificates_are_refused_in_one_line():
    with pytest.raises(TypeError, match="now called cost"):
        type("Old", (SmoothedClassifier,), {"evaluations": lambda self, h, w: (1, 1)})
    with pytest.raises(TypeError, match="CertifiedClassifier"):
        type("Old", (Classifier,), {"certify": lambda self, x, threat: None})

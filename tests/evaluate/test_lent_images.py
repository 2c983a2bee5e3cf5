"""Models, certifiers and attacks that write to the tensors they are given change no record but by what they answer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from attacks import Ensemble, Oracle, PatchPGD, Proposal, SparseRS
from evaluate import Settings
from evaluate.results.metrics import summarise
from evaluate.runs.batch import evaluate_batch
from evaluate.runs.counterexample import load_counterexample, replay
from evaluate.runs.records import Record
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.randomized import Sampling
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchcleanser import DoubleMasking
from robustpatch.defenses.patchguard import PatchGuard
from robustpatch.errors import InvalidInput
from robustpatch.networks import StripNet
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests.attacks.scribblers import Sum, Uncertified, alone, always, claim, climbed, never, scribbling
from tests.attacks.toys import Level, Plain, images, registered
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import evaluated, timeless
from tests.toys import strip

THREAT = PatchThreat(1, 1)
GREY = image_set(torch.full((4, 1, 4, 4), 76 / 255), torch.zeros(4, dtype=torch.long), 2)  # 4.77 in sum; 5 is one more
FEW = registered(steps=2, restarts=2, rounds=0, queries=6, tries=2, rows=4, candidates=3)


run = partial(evaluated, data=GREY, threat=THREAT, batch_size=4, certified_budget=60, gallery=2)


def lines(records: list[Record]) -> list[Record]:
    return timeless(records)


@pytest.mark.parametrize("when", [always, alone, climbed])
@pytest.mark.parametrize("methods", [(), ("forward",), ("predict",), ("certify",)], ids=str)
def test_a_false_certifier_is_broken_whatever_it_leaves_of_the_images(methods, when, tmp_path):
    """Ablating in place, always or in some calls, does not save a certificate that one white pixel breaks."""
    attacks = (PatchPGD(steps=8, restarts=2, last=1.0), SparseRS(queries=20))
    model = scribbling(Sum, *methods, when=when)()
    records, twin = (run(one, tmp_path / str(k), attacks) for k, one in enumerate((model, Sum())))
    assert lines(records) == lines(twin)
    assert summarise(records).verdict == "broken"
    names = list((tmp_path / "0" / "counterexamples").iterdir())
    assert len(names) == 8
    for name in names:
        example = load_counterexample(name)
        assert int((example.x != example.x_adv).sum()) == 1
        outcome, certified = replay(example, model)
        assert certified
        assert outcome.broken.all()


@pytest.mark.parametrize("name", FEW)
def test_every_attack_climbs_what_the_model_computes(name, tmp_path):
    """The same patches, accounts and verdicts as on the model's twin, certified or not."""
    data = image_set(images(2, (4, 4)) * 0.6, torch.tensor([0, 0]), 2)
    attack = replace(FEW[name], budget=60)
    for kind in (Sum, Uncertified):
        model = scribbling(kind)()
        both = [
            run(one, tmp_path / f"{kind.__name__}{k}", (attack,), data=data) for k, one in enumerate((model, kind()))
        ]
        assert lines(both[0]) == lines(both[1])
        assert any(record.attacks for record in both[0])


def ours(base_kind, strip_kind, plain_kind):
    """Our own classifiers around networks of these kinds."""
    strips = SmoothedClassifier(strip(kind=strip_kind, classes=3), Columns(2), num_classes=3, voting=TopOne())
    yield strips
    yield SmoothedClassifier(base_kind(3), Columns(1), num_classes=3, voting=TopOne(1e-6))
    yield PatchGuard(window="2x2").wrap(SmoothedClassifier(base_kind(3), Columns(1), num_classes=3), num_classes=3)
    yield DoubleMasking("2", "2x2").wrap(plain_kind(48), num_classes=3)
    sampling = Sampling(selection=20, estimation=200, prediction=100, alpha=0.05)
    yield RandomizedClassifier(base_kind(3), Columns(1), num_classes=3, sampling=sampling)


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("outer", [False, True])
def test_our_classifiers_around_networks_that_write(which, outer, tmp_path):
    """A network inside, or a subclass of ours outside, that writes: votes, certificates and attacks are the twin's."""
    kinds = (Level, StripNet, Plain)
    twin = list(ours(*kinds))[which].eval()
    model = list(ours(*map(scribbling, kinds)))[which].eval()
    if outer:
        public = [name for name in ("forward", "predict", "certify") if hasattr(twin, name)]
        twin.__class__, model.__class__ = (scribbling(type(twin), *public, when=when) for when in (never, always))
        if isinstance(twin, RandomizedClassifier):  # one that predicts in its own way says itself who judges
            for one in (twin, model):
                type(one).referee = lambda self: RandomizedClassifier.referee(self)
    x = images(4, (6, 8))
    x[:2, :, :, 3:] = 0
    data = image_set(x, twin.predict((x * 255).round() / 255).clamp(min=0), 3)
    attacks = (Ensemble((PatchPGD(steps=2, restarts=2), SparseRS(queries=5)), "both"),)
    records = [
        run(one, tmp_path / str(k), attacks, data=data, threat=PatchThreat(2, 2)) for k, one in enumerate((model, twin))
    ]
    assert lines(records[0]) == lines(records[1])
    assert any(record.attacks for record in records[1])


def test_the_callers_tensors_stay_as_they_are():
    """What a model, an attack or both do to their arguments reaches nobody else, whoever calls."""
    x, y = images(3, (4, 4)) * 0.6, torch.zeros(3, dtype=torch.long)
    before = x.clone()
    model = scribbling(Sum)().eval()
    for attack in (*FEW.values(), Oracle()):
        attack = replace(attack, attack=attack.attack) if hasattr(attack, "attack") else attack
        attack(model, x, y, THREAT, generator=torch.Generator().manual_seed(0))
        assert torch.equal(x, before), attack.name
        evaluate_batch(model, x, y, 0, THREAT, (attack,), Settings(3, certified_budget=200))
        assert torch.equal(x, before), attack.name
        assert not y.any()


class Vandal:
    """Proposes one white pixel, right or out of reach, and writes to all it got; next time to what it returned too."""

    name, touched_only = "vandal", False

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def unpruned(self, budget):
        return self

    def check(self, threat):
        pass

    def __call__(self, model, x, y, threat, *, generator):
        for tensor in self.given:
            tensor.zero_()
        found = x.clone()
        found[:, :, 0, 0] = 1
        corners, some = torch.zeros(len(x), 1, 2, dtype=torch.long), torch.ones(len(x), dtype=torch.long)
        x.fill_(0.5)
        y.fill_(1)
        self.given = [found, corners, some]
        return Proposal(found, corners, some, some.float())


def test_attacks_that_write(tmp_path):
    """To images, labels and, later, their own proposals: records and counterexamples are of what was judged."""
    data = image_set(torch.full((6, 1, 4, 4), 76 / 255), torch.zeros(6, dtype=torch.long), 2)
    records = run(Sum(), tmp_path, (Vandal(), Ensemble((Vandal(), SparseRS(queries=3)), "both")), data=data)
    for record in records:
        assert [a.broken for a in record.attacks] == [True, True]
        assert [a.patches for a in record.attacks] == [1, 1]
    for name in (tmp_path / "counterexamples").iterdir():
        example = load_counterexample(name)
        assert int((example.x != example.x_adv).sum()) == 1
        assert replay(example, Sum().eval())[0].broken.all()


class Buffer(Sum):
    """Returns the same tensors at every call, with new values in them."""

    def __init__(self) -> None:
        super().__init__()
        self._said = [torch.zeros(50, dtype=torch.long)]  # private: an attack that changes what is public is refused

    def predict(self, x):
        (said,) = self._said
        said[: len(x)] = super().predict(x)
        return said[: len(x)]

    def certify(self, x, threat):
        return claim(self.predict(x), threat)


def test_answers_in_one_buffer(tmp_path):
    """What was answered before stays what it was."""
    data = image_set(images(4, (4, 4)) * 0.6, torch.tensor([0, 1, 0, 1]), 2)
    attacks = (PatchPGD(restarts=2), SparseRS(queries=20))
    both = [run(one, tmp_path / str(k), attacks, data=data) for k, one in enumerate((Buffer(), Sum()))]
    assert lines(both[0]) == lines(both[1])


class Moody(Sum):
    """Answers 1 from its call number `first` on, whatever the image: a state that others would call noise."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last, self.calls = first, last, 0

    def predict(self, x):
        self.calls += 1
        return torch.full((len(x),), int(self.first <= self.calls < self.last))


class Companion(Sum):
    """Predicts class 1 for everything as soon as a white pixel is among several images."""

    def predict(self, x):
        return torch.full((len(x),), int(len(x) > 1 and bool((x == 1).any())))

    def certify(self, x, threat):
        return claim(torch.zeros(len(x), dtype=torch.long), threat)


@pytest.mark.parametrize("model", [Companion(), Moody(1, 2), Moody(3, 4)], ids=["company", "first", "judged"])
def test_a_counterexample_that_does_not_stand_is_no_verdict(model, tmp_path):
    """Replayed alone it does not break: refused, with image, attack and remedy, and no verdict of either kind."""
    model.certify = lambda x, threat: claim(torch.zeros(len(x), dtype=torch.long), threat)
    with pytest.raises(InvalidInput, match=r"image \d was certified .* alone .* make them functions of the"):
        run(model, tmp_path, (SparseRS(queries=3),))
    assert not (tmp_path / "counterexamples").exists()


def test_a_moody_model_is_refused(tmp_path):
    """One clean image of each batch is asked about alone: what is answered there must be what was answered before."""
    model = Moody(2, 3)
    model.certify = lambda x, threat: claim(torch.zeros(len(x), dtype=torch.long), threat)
    with pytest.raises(InvalidInput, match="predict answers 0 for image 0 beside other images and 1 for it alone"):
        run(model, tmp_path, (SparseRS(queries=3),))


WRONG = {
    "certify of Sum returned a Tensor": lambda p, t: p,
    "certify of Sum returned a tuple": lambda p, t: (p, p),
    r"prediction .* torch.int64 \[4, 1\]": lambda p, t: replace_field(claim(p, t), "prediction", p[:, None]),
    r"prediction of the certificate is torch.int64 \[1\]": lambda p, t: replace_field(claim(p, t), "prediction", p[:1]),
    r"prediction of the certificate is torch.float32 \[4\]": lambda p, t: replace_field(
        claim(p, t), "prediction", p.float()
    ),
    r"certified .* torch.bool \[1\]": lambda p, t: replace_field(claim(p, t), "certified", p[:1] == p[:1]),
    r"certified of the certificate is torch.int64 \[4\]": lambda p, t: replace_field(claim(p, t), "certified", p),
    "certified of the certificate is a bool": lambda p, t: replace_field(claim(p, t), "certified", True),
}


def replace_field(certificate, name, value):
    object.__setattr__(certificate, name, value)  # as foreign code may: nothing checks types when a library runs
    return certificate


@pytest.mark.parametrize("message", WRONG)
def test_certificates_of_other_shapes_are_refused(message, tmp_path):
    """One class and one boolean for each image; other shapes would be broadcast."""
    model = Sum()
    model.certify = lambda x, threat: WRONG[message](Sum.forward(model, x).argmax(1), threat)
    with pytest.raises(InvalidInput, match=message):
        run(model, tmp_path, ())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: torch.zeros(1, dtype=torch.long), r"predict of Sum returned \(1,\)"),
        (lambda x: torch.zeros(len(x), 2), r"predict of Sum returned \(4, 2\) of torch.float32"),
        (lambda x: torch.zeros(len(x), dtype=torch.bool), "torch.bool"),
        (lambda x: [0] * len(x), "predict of Sum returned a list"),
    ],
)
def test_predictions_of_other_shapes_are_refused(answer, message, tmp_path):
    """One whole number for each image."""
    model = Sum()
    model.predict = answer
    with pytest.raises(InvalidInput, match=message):
        run(model, tmp_path, ())


class Off(Vandal):
    """A proposal with one thing wrong."""

    def __init__(self, name, change) -> None:
        super().__init__()
        self.field, self.change = name, change

    def __call__(self, model, x, y, threat, *, generator):
        found = super().__call__(model, x.clone(), y.clone(), threat, generator=generator)
        object.__setattr__(found, self.field, self.change(getattr(found, self.field)))
        return found


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("x_adv", lambda v: v.double()),
        ("x_adv", lambda v: v[:1]),
        ("corners", lambda v: v.float()),
        ("corners", lambda v: v[:, 0]),
        ("evaluations", lambda v: v[:1]),
        ("evaluations", lambda v: v.bool()),
        ("visited", lambda v: v.long()),
        ("by", lambda v: ["a"]),
    ],
)
def test_proposals_of_other_shapes_are_refused(name, change, tmp_path):
    """By the attack's name and what is needed."""
    with pytest.raises(InvalidInput, match=f"attack vandal .*{name}"):
        run(Sum(), tmp_path, (Off(name, change),))


def test_a_module_without_forward_is_told(tmp_path):
    """Attacks read scores, so a module that has none is refused by name and with a remedy."""

    class Silent(nn.Module):
        num_classes = 2

        def predict(self, x):
            return torch.zeros(len(x), dtype=torch.long)

        def certify(self, x, threat):
            return claim(self.predict(x), threat)

    with pytest.raises(InvalidInput, match=r"Silent has no forward\(x\).*one_hot"):
        run(Silent(), tmp_path, (SparseRS(queries=3),))

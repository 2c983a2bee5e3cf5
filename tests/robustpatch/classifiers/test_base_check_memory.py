"""PITFALLS 30: what a passed check allows ends with whatever changes the base, and every ablation has its turn."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.classifiers import base_check
from robustpatch.classifiers.base_check import spread
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import TopOne
from tests import toys

ONE = PatchThreat(1, 1)


class Leaky(nn.Module):
    """Scores of each band by its number, and, as far as some `gain` is not 0, by all of the image."""

    weight_of_class = 0.0
    ablation: Ablation

    def __init__(self, ablation: Ablation) -> None:
        super().__init__()
        self.ablation = ablation
        self.weight, self.plain = nn.Parameter(torch.zeros(1)), 0.0
        self.tensor, self.array, self.table = torch.zeros(1), np.zeros(1), {"nested": [0.0]}
        self.register_buffer("buffer", torch.zeros(1))
        self.holder = Holder()

    def gain(self):
        told = self.weight + self.tensor + self.buffer + self.plain + self.table["nested"][0] + self.weight_of_class
        return told + float(self.array[0]) + self.holder.value

    def score_all(self, x, index=None):
        n = self.ablation.count(*x.shape[2:])
        index = (torch.arange(n) if index is None else index).expand(len(x), -1)
        seen = (self.gain() * 20 * x.mean(dim=(1, 2, 3)))[:, None] + 0 * index
        return torch.stack([5 + 0 * seen, seen], dim=2)


class Holder:
    """A plain object that a base leans on."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


def leaky(**options) -> SmoothedClassifier:
    return SmoothedClassifier(Leaky(Columns(1)), Columns(1), num_classes=2, voting=TopOne(), **options).eval()


def _widened(base: nn.Module, _: object) -> None:
    old = base.score_all
    base.score_all = lambda x, index=None: (
        old(x, index) + torch.stack([0 * x.sum((1, 2, 3)), 20 * x.sum((1, 2, 3))], dim=1)[:, None]
    )


EDITS = {  # each lets the base see all of the image, and changes no version counter
    "data": lambda base, _: base.weight.data.copy_(torch.ones(1)),
    "buffer": lambda base, _: base.buffer.data.fill_(1.0),
    "numpy": lambda base, _: base.weight.detach().numpy().fill(1.0),
    "attribute": lambda base, _: setattr(base, "plain", 1.0),
    "tensor": lambda base, _: setattr(base, "tensor", torch.ones(1)),
    "array": lambda base, _: base.array.fill(1.0),
    "nested": lambda base, _: base.table["nested"].__setitem__(0, 1.0),
    "object": lambda base, _: setattr(base.holder, "value", 1.0),
    "method": _widened,
    "class": lambda _, patch: patch.setattr(Leaky, "gain", lambda self: torch.ones(1)),
    "class attribute": lambda _, patch: patch.setattr(Leaky, "weight_of_class", 1.0),
    "code": lambda _, patch: patch.setattr(Leaky.gain, "__code__", (lambda self: torch.ones(1)).__code__),
}


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_seen(name, monkeypatch):
    """At the next certificate: the base is tested again, and what now sees too much is refused."""
    model, x = leaky(), toys.images(2)
    # Where the votes are tested again in full, on which every edit tells; the few that each call asks may miss it.
    tested, original = [], base_check.base_is_sound
    monkeypatch.setattr(
        base_check, "base_is_sound", lambda *a, again, **b: tested.append(again) or original(*a, again=again, **b)
    )
    model.certify(x, ONE)
    model.certify(x, ONE)
    assert tested == [False, True]
    EDITS[name](model.base, monkeypatch)
    with pytest.raises(InvalidInput, match="sees more than its band"):
        model.certify(x, ONE)
    assert tested == [False, True, False]


def hooked(model: nn.Module):
    return model.base[1].register_forward_hook(lambda module, given, out: out + out.mean(dim=0))


def pre_hooked(model: nn.Module):
    return model.base[1].register_forward_pre_hook(lambda module, given: (given[0] + given[0].mean(dim=0),))


def globally(model: nn.Module):
    return nn.modules.module.register_module_forward_hook(
        lambda module, given, out: out + out.mean(dim=0) if isinstance(module, nn.Linear) else out
    )


@pytest.mark.parametrize("hook", [hooked, pre_hooked, globally])
def test_every_hook_is_seen(hook):
    """One of the base's own, and one of all modules: they couple images. Gone again, all is as it was."""
    model, x = toys.smoothed(toys.linear()), toys.images(3)
    model.certify(x, ONE)
    handle = hook(model)
    try:
        with pytest.raises(InvalidInput, match="couples"):
            model.certify(x, ONE)
    finally:
        handle.remove()
    model.certify(x, ONE)


def full(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the base was tested in full, at each call."""
    found: list[bool] = []
    monkeypatch.setattr(base_check, "base_is_sound", lambda *_, again, **__: found.append(not again))
    return found


def test_nothing_else_asks_for_a_full_test(monkeypatch):
    """Not a second object with the same weights, not weights put back; every precision and mode of autocast does."""
    model, x = toys.smoothed(toys.linear()), toys.images(2)
    found = full(monkeypatch)
    model.certify(x, ONE)
    model.largest_certified(x)
    model.certifiable_scores(x)
    model.base = copy.deepcopy(model.base)
    model.certify(x, ONE)
    before = model.base[1].weight.detach().clone()
    model.base[1].weight.data += 1
    model.certify(x, ONE)
    model.base[1].weight.data.copy_(before)
    model.certify(x, ONE)
    assert found == [True, False, False, False, True, False]
    with torch.autocast("cpu", torch.bfloat16):
        model.certify(x, ONE)
    model.certify(x.double(), ONE)
    model.chunk = 3
    model.certify(x, ONE)
    model.bfloat16().certify(x, ONE)
    assert found[6:] == [True] * 4


def calls_until_refused(model: SmoothedClassifier, x: torch.Tensor) -> int:
    calls = 0
    try:
        while calls < 100:
            calls += 1
            model.certify(x, ONE)
    except InvalidInput as error:
        assert "sees more than its band" in str(error)  # noqa: PT017  which call it is counts
    return calls


class Only(Leaky):
    """Sees all of the image in one ablation."""

    def __init__(self, ablation: Ablation, leaking: int) -> None:
        super().__init__(ablation)
        self.leaking = leaking

    def score_all(self, x, index=None):
        n = self.ablation.count(*x.shape[2:])
        index = (torch.arange(n) if index is None else index).expand(len(x), -1)
        seen = torch.where(index == self.leaking, 20 * x.mean(dim=(1, 2, 3))[:, None], 0.0)
        return torch.stack([5 + 0 * seen, seen], dim=2)


@pytest.mark.parametrize("side", [12, 20])
def test_each_ablation_has_its_turn(side, monkeypatch):
    """Of 144, all at the first call; of 400, after 64 calls at the latest, 256 of them at the first."""
    n, x, late = side * side, toys.images(3, 1, (side, side)), 0
    asked: list[int] = []
    original = base_check.scores_of
    for leaking in (0, 1, n // 2, n - 1, *torch.randperm(n, generator=torch.Generator().manual_seed(0))[:8].tolist()):
        model = SmoothedClassifier(
            Only(Blocks(1), leaking), Blocks(1), num_classes=2, voting=TopOne(), chunk=10**6
        ).eval()
        calls = calls_until_refused(model, x)
        assert calls <= 64
        late += calls > 1
    assert (late > 0) == (side == 20)
    seen: list[int] = []
    model = SmoothedClassifier(Leaky(Blocks(1)), Blocks(1), num_classes=2, voting=TopOne()).eval()
    monkeypatch.setattr(
        base_check, "scores_of", lambda m, some, index=None: asked.append(index) or original(m, some, index)
    )
    for call in range(64):
        model.certify(x, ONE)
        seen += [int(i) for some in asked if some is not None for i in some.unique()]
        asked.clear()
        if call == 0:
            assert len(set(seen)) == min(n, 256)
    assert set(seen) == set(range(n))


def test_an_order_that_visits_all():
    """Any run of as many as there are visits each once, any run of a few is spread."""
    for total in (1, 2, 3, 64, 65, 196, 784, 1000):
        for first in (0, 5):
            assert sorted(spread(total, first, 2 * total).tolist()) == list(range(total))
    some = spread(784, 100, 64).sort().values
    assert int(some.diff().max()) < 40


def test_plain_bases_have_their_turn():
    """Coupled only where a certain view is scored alone."""

    class Shy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alone = True

        def forward(self, x):
            shown = 0.01 * x.flatten(1).sum(dim=1, keepdim=True) * torch.arange(2)
            return shown + (SHIFT[0] if len(x) == 1 else 0.0) * torch.arange(2)

    SHIFT[0] = 0.0
    model, x = SmoothedClassifier(Shy(), Columns(2), num_classes=2, voting=TopOne()).eval(), toys.images(2)
    model.certify(x, ONE)
    SHIFT[0] = 50.0  # a global, of which nothing can be told: what every call asks shows it
    with pytest.raises(InvalidInput, match="alone and beside others"):
        model.certify(x, ONE)


SHIFT, ROWS = [0.0], []  # not told: globals


@pytest.mark.parametrize("kind", ["smoothed", "randomized", "patchcleanser"])
def test_at_every_call(kind, monkeypatch):
    """`check="every call"` is in full each time; other words are refused, as an argument and as an attribute."""

    def made(**options):
        if kind == "patchcleanser":
            return PatchCleanser(toys.linear(1), DoubleMasking("2", "1x1"), num_classes=4, **options).eval()
        if kind == "smoothed":
            return SmoothedClassifier(toys.linear(), Columns(2), num_classes=4, **options).eval()
        return RandomizedClassifier(toys.linear(), Columns(2), num_classes=4, **options).eval()

    model, often, x = made(), made(check="every call"), toys.images(2)
    if kind != "patchcleanser":
        found = full(monkeypatch)
        for one in (model, often):
            for _ in range(3):
                one.certify(x, ONE)
        assert found == [True, False, False, True, True, True]
    else:
        asked = []
        for one in (model, often):
            one.network[0].register_forward_hook(lambda module, given, out: ROWS.append(len(out)))
            for _ in range(3):
                ROWS.clear()
                one.check_network(x)
                asked.append(sum(ROWS))
        assert asked == [6, 3, 3, 6, 6, 6]
    with pytest.raises(InvalidInput, match=r"check is 'never'; use \"once\" .* or \"every call\""):
        made(check="never")
    model.check = "sometimes"
    with pytest.raises(InvalidInput, match="check is 'sometimes'"):
        model.certify(x, ONE)


def test_patchcleanser_sees_edits():
    """A hook and an attribute that couple images, put in after it has passed."""
    model, x = PatchCleanser(toys.linear(1), DoubleMasking("2", "1x1"), num_classes=4).eval(), toys.images(2)
    model.certify(x, ONE)
    handle = model.network[1].register_forward_hook(lambda module, given, out: out + out.mean(dim=0))
    with pytest.raises(InvalidInput, match="logits differ"):
        model.certify(x, ONE)
    handle.remove()
    model.certify(x, ONE)
    model.network.forward = lambda some: some.flatten(1)[:, :4] * some.mean()
    with pytest.raises(InvalidInput, match="logits differ"):
        model.certify(x, ONE)


@pytest.mark.parametrize("compiled", [False, True])
def test_copies_start_anew(compiled, monkeypatch):
    """Pickled and deep-copied after a certificate, a compiled base too; what the check knows does not travel."""
    x = toys.images(2)
    smoothed = toys.smoothed(toys.linear())
    cleansed = PatchCleanser(toys.linear(1), DoubleMasking("2", "1x1"), num_classes=4).eval()
    sampled = RandomizedClassifier(toys.linear(), Columns(2), num_classes=4).eval()
    for model, base in ((smoothed, smoothed.base), (cleansed, cleansed.network), (sampled, sampled.base)):
        if compiled:
            base.compile(backend="eager")
        before = len(pickle.dumps(model))
        found = model.certify(x, ONE)
        model.certify(x, ONE)
        assert compiled or len(pickle.dumps(model)) == before  # dynamo leaves marks of its own
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
            assert torch.equal(other.certify(x, ONE).prediction, found.prediction)
            assert "passed" not in other.state_dict()
    tested = full(monkeypatch)
    copy.deepcopy(smoothed).certify(x, ONE)
    smoothed.certify(x, ONE)
    assert tested == [True, False]


def test_scripts_are_tested_at_every_call(monkeypatch):
    """Attributes of TorchScript cannot be told."""
    with pytest.warns(FutureWarning, match="trace"):
        script = torch.jit.trace(toys.linear(), torch.zeros(1, 2, *toys.SIZE))
    model, found = toys.smoothed(script), full(monkeypatch)
    for _ in range(2):
        model.certify(toys.images(2), ONE)
    assert found == [True, True]


def test_the_guard_follows_the_images(monkeypatch):
    """A base without weights is where its images are: TF32 is no concern of a CPU, whether or not there is a GPU."""
    model = SmoothedClassifier(nn.Flatten(), Columns(2), num_classes=4, voting=TopOne()).eval()
    cleansed = PatchCleanser(nn.Flatten(), DoubleMasking(), num_classes=4).eval()
    sampled = RandomizedClassifier(nn.Flatten(), Columns(2), num_classes=4).eval()
    monkeypatch.setattr("robustpatch.precision.settings", lambda kind: (False, "tf32") if kind == "cuda" else (False,))
    for there in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for one, narrow, wide in ((model, 1e-4, 1e-2), (sampled, 1e-4, 1e-2), (cleansed, 1e-3, 0.5)):
            assert one.guard_on("cpu") == one.guard_on(torch.device("cpu")) == narrow
            assert one.guard_on("cuda:0") == wide
            assert one.guard == (wide if there else narrow)


def test_certificates_have_the_guard_of_their_images(monkeypatch):
    """On a CPU beside a GPU in TF32, too: in votes, certificates and tests of the base."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    class Weightless(nn.Module):
        def forward(self, view):
            return torch.tensor([-0.871, 0.0]).expand(len(view), 2) + 0 * view.mean(dim=(1, 2, 3))[:, None]

    x = toys.images(2)
    smoothed = SmoothedClassifier(Weightless(), Columns(2), num_classes=2).eval()  # scores .295 and .705, θ = .3
    assert smoothed.guard == 1e-2
    found = smoothed.certify(x, ONE)
    assert found.guard == 1e-4
    assert found.close.tolist() == [0, 0]
    assert found.certified.all()
    assert not smoothed.votes(x).close.any()
    assert RandomizedClassifier.of(smoothed).certify(x, ONE).guard == 1e-4
    cleansed = PatchCleanser(Weightless(), DoubleMasking("2", "1x1"), num_classes=2).eval()
    assert cleansed.certify(x, ONE).guard == 1e-3
    assert cleansed.guard == 0.5

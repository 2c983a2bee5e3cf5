"""Who judges, and in what state: verdicts that models and attacks of others could once get unearned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from attacks import Control, Ensemble, FromART, PatchPGD, SparseRS
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.scribblers import claim
from tests.evaluate.foreign import ONE, PGD, RANDOM, Bright, Told, put, run, scores
from tests.evaluate.planted import image_set


def verdict(*args, **more) -> str:
    return run(*args, **more).verdict


class Sharp(Bright):
    """The same with a threshold that can be moved, and a sigmoid too steep to climb."""

    def __init__(self, threshold: float = 0.9) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(threshold))
        self.scale, self._offset = 200.0, 0.0
        self.rule = {"sign": 1.0}

    def forward(self, x):
        changed = torch.sigmoid(self.scale * (x.amax((1, 2, 3)) - self.threshold - self._offset))
        return scores(changed * self.rule["sign"])


def _soft(x):
    return scores(0 * x.sum((1, 2, 3)))


EDITS = {
    "threshold": lambda model: model.threshold.fill_(1.5),
    "scale": lambda model: setattr(model, "scale", 0.0),
    "_offset": lambda model: setattr(model, "_offset", 1.0),
    "rule": lambda model: model.rule.update(sign=0.0),
    "training": lambda model: model.train(),
    "forward": lambda model: setattr(model, "forward", _soft),
    "_forward_hooks": lambda model: model.register_forward_hook(lambda module, x, out: 0 * out),
    "_buffers": lambda model: model.register_buffer("threshold", torch.tensor(1.5)),
}


@dataclass(frozen=True, kw_only=True)
class Editing(PatchPGD):
    """Changes the model before it climbs, and does not put it back."""

    edit: str

    def _run(self, search):
        EDITS[self.edit](search.model)
        super()._run(search)


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("within", [False, True], ids=["alone", "member"])
def test_an_attack_that_changes_the_model_is_refused_by_name(edit, within, tmp_path):
    """Else it, and all that follows, would be judged on another model than the one that run.json names."""
    attack = Editing(restarts=3, label="easier", edit=edit)
    with pytest.raises(InvalidInput, match=f"easier changed .*{'threshold' if edit == '_buffers' else edit}"):
        run(Sharp(), tmp_path, Ensemble((attack, RANDOM), "both") if within else attack, PGD)


def test_a_class_that_an_attack_changes(tmp_path):
    """A method put in the place of another is such a change too."""

    class Open(Sharp):
        pass

    @dataclass(frozen=True)
    class Patching(PatchPGD):
        def _run(self, search):
            Open.predict = lambda self, x: torch.zeros(len(x), dtype=torch.long)
            super()._run(search)

    with pytest.raises(InvalidInput, match=r"pgd changed .*Open"):
        run(Open(), tmp_path, replace(Patching(restarts=3), label="pgd"))


class Counting(Bright):
    """Counts and keeps what it is asked, as its own code does: no attack changes it."""

    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.shapes, self._last = 0, {}, None
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.asked += len(x)
        self.shapes[tuple(x.shape)] = self.shapes.get(tuple(x.shape), 0) + 1
        self._last = x.detach()
        Counting.total += 1
        self.seen += 1
        return super().forward(x)


def test_what_a_model_counts_itself_is_no_change_by_an_attack(tmp_path):
    """Nor is an attack at fault that puts back what it changed."""
    assert verdict(Counting(), tmp_path / "counting", PGD, RANDOM) == "broken"

    @dataclass(frozen=True)
    class Tidy(PatchPGD):
        def _run(self, search):
            handle = search.model.register_forward_hook(lambda module, x, out: 1 * out)
            search.model.threshold.add_(0)
            super()._run(search)
            handle.remove()

    assert verdict(Sharp(), tmp_path / "tidy", Tidy(restarts=9)) == "broken"


class Surrogate(Bright):
    """The rule is hard; where gradients are on, a smooth stand-in answers, as in straight-through code."""

    def forward(self, x):
        if torch.is_grad_enabled():
            return scores(torch.sigmoid(4 * (x.mean((1, 2, 3)) - 0.9)))
        return scores((x.amax((1, 2, 3)) > 0.9).float())


class Counted(Surrogate):
    def predict_counted(self, x):
        return self.predict(x), torch.ones(len(x), dtype=torch.long)


@pytest.mark.parametrize("kind", [Surrogate, Counted])
def test_predictions_are_asked_for_as_certificates_are_without_gradients(kind, tmp_path):
    """Certified is one function of the image; that one is judged."""
    with torch.enable_grad():
        assert verdict(kind(), tmp_path, RANDOM) == "broken"


class Steady(Bright):
    def forward(self, x):
        return scores(0 * x.sum((1, 2, 3)))


class Refereed(Bright):
    """Declares to be randomized and has a referee, which no patch moves; certifies without a confidence."""

    randomized = True

    def referee(self):
        return Steady().eval()


@pytest.mark.parametrize(
    "attack", [RANDOM, Ensemble((RANDOM,), "one"), Ensemble((RANDOM, PatchPGD(restarts=1)), "two")], ids=repr
)
def test_no_referee_judges_a_proof(attack, tmp_path):
    """A certificate without a confidence is about the model's own predict."""
    assert verdict(Refereed(), tmp_path, attack) == "broken"


class ByAddress(Bright):
    """Keeps answers by the address of what it was asked: copies are given the addresses of earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self._seen = {}

    def predict(self, x):
        key = x.data_ptr(), tuple(x.shape)
        if key not in self._seen:
            self._seen[key] = super().predict(x)
        return self._seen[key]


class Stateful(Bright):
    """Answers what is nearly an earlier question as it did then."""

    def __init__(self) -> None:
        super().__init__()
        self._asked = []

    def predict(self, x):
        out = super().predict(x)
        for i, one in enumerate(x):
            near = [p for q, p in self._asked if ((q - one) != 0).any(0).sum() <= 1]
            if near:
                out[i] = near[0]
            else:
                self._asked.append((one.clone(), int(out[i])))
        return out


@pytest.mark.parametrize("kind", [ByAddress, Stateful])
@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_remembers_does_not_hold(kind, seed, tmp_path):
    """Broken or refused, whatever the allocator does: asked afresh it falls to one white pixel."""
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) / 2
    try:
        found = verdict(kind(), tmp_path, SparseRS(queries=30), data=image_set(x, torch.zeros(1).long(), 2))
    except InvalidInput as refusal:
        found = str(refusal)
    assert found == "broken" or "earlier" in found


def test_a_search_that_is_contradicted_by_the_judge(tmp_path):
    """An attack of ours saw the prediction change, and then it has not: refused, as the other way round."""

    class Alone(Bright):
        """What it says of an image depends on whether the image comes alone and for the first time."""

        def __init__(self) -> None:
            super().__init__()
            self._hits = []

        def predict(self, x):
            out = super().predict(x)
            self._hits += [1] * int(out.sum())
            return out if len(self._hits) == int(out.sum()) == 1 else 0 * out

        def __deepcopy__(self, memo):
            raise TypeError("this model cannot be copied")

    with pytest.raises(InvalidInput, match="earlier calls"):
        run(Alone(), tmp_path, RANDOM, data=image_set(torch.full((1, 1, 4, 4), 0.2), torch.zeros(1).long(), 2))


class Coupled(Bright):
    """An ordinary slip: x.std() for x.std((1, 2, 3))."""

    def forward(self, x):
        z = (x.amax((1, 2, 3)) - x.mean((1, 2, 3))) / (x.std() + 0.01)
        return scores(torch.sigmoid(50 * (z - 3.0)))


WHITE = Told(put(1.0), name="white")


@pytest.mark.parametrize("number", [8, 20])
def test_attacked_images_are_judged_alone_too(number, tmp_path):
    """In the company of other attacked images it holds; alone, as deployed, one white pixel changes it."""
    x = torch.rand(number, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x[0] *= 0.04
    data = image_set(x, torch.zeros(number).long(), 2)
    with pytest.raises(InvalidInput, match="alone and asked afresh"):
        run(Coupled(), tmp_path, WHITE, data=data)
    if number == 8:
        with pytest.raises(InvalidInput, match="other images of a batch"):
            run(Coupled(), tmp_path / "searched", SparseRS(queries=60), data=data)  # which asks about some alone


class Company(Bright):
    """Certifies only in company, or predicts another class alone."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def forward(self, x):
        return scores(0 * x.sum((1, 2, 3)) + float(self.method == "predict" and len(x) == 1))

    def certify(self, x, threat):
        found = self.predict(x)
        if self.method == "predict":
            found = 0 * found
        return claim(found, threat, certified=torch.full_like(found, len(x) > 1 or self.method == "predict").bool())


@pytest.mark.parametrize("method", ["predict", "certify"])
def test_clean_images_are_asked_about_alone_too(method, tmp_path):
    with pytest.raises(InvalidInput, match=f"{method} .*alone"):
        run(Company(method), tmp_path, Control(content="grey", tries=1, touched_only=False))


GREY = Control(content="grey", tries=1, touched_only=False)


@dataclass(frozen=True)
class Thrifty(PatchPGD):
    """Where the budget is small, it falls back on a control."""

    def unpruned(self, budget):
        return Ensemble((GREY,), self.name) if budget is not None and budget < 61 else super().unpruned(budget)


@dataclass(frozen=True)
class Mine(Ensemble):
    """Only the name is another."""

    @property
    def name(self) -> str:
        return "my-" + self.label


MEMBERS = (GREY, FromART.bim(steps=3, tries=2))  # whose gradients are 0 here: it never changes a pixel


@pytest.mark.parametrize("attack", [Mine(MEMBERS, "mix"), Ensemble((Mine(MEMBERS, "mix"),), "outer")], ids=repr)
def test_what_controls_tried_counts_for_no_subclass_of_an_ensemble(attack, tmp_path):
    assert verdict(Bright(), tmp_path, attack) == "not tested"


def test_an_attack_that_falls_back_on_controls_within_the_budget(tmp_path):
    with pytest.raises(InvalidInput, match="controls alone"):
        run(Bright(), tmp_path, Thrifty(label="thrifty"), certified_budget=40)


def test_a_certificate_of_another_threat_is_refused(tmp_path):
    """Held to what it was not asked about, a true certificate would be called broken."""

    class Smaller(Bright):
        def forward(self, x):
            return scores(((x > 0.9).sum((1, 2, 3)) > 1).float() + 0 * x.sum((1, 2, 3)))

        def certify(self, x, threat):
            return claim(self.predict(x), ONE)

    with pytest.raises(InvalidInput, match=r"2x2.*1x1"):
        run(Smaller(), tmp_path, RANDOM, threat=PatchThreat(2, 2))

"""Models that cannot be differentiated are attacked by what needs no gradient, and that is said; or refused."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from attacks import Control, Ensemble, ExhaustivePGD, FromART, LaVAN, PatchPGD, SparseRS, Universal, quick, standard
from attacks.gradient import NotDifferentiable, check_differentiable, climbs, differentiate
from attacks.occlusion import CONTROLS, ROA
from attacks.registry import KNOWN, parse_attacks
from attacks.undefended import Undefended
from evaluate import Settings, evaluate
from evaluate.results.metrics import summarise
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.scribblers import claim
from tests.attacks.toys import Level, Plain, images
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import evaluated


class Hard(nn.Module):
    """Class 1 where a pixel exceeds 0.9, as whole numbers; claims that no patch changes that."""

    num_classes = 2

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x.amax((1, 2, 3)) > 0.9).long(), 2)

    def predict(self, x: Tensor) -> Tensor:
        return self.forward(x).argmax(1)

    def certify(self, x: Tensor, threat):
        return claim(self.predict(x), threat)


def _scores(bright: Tensor) -> Tensor:
    return torch.stack([0.9 - bright, bright - 0.9], 1)


class Numpy(Hard):
    def forward(self, x):
        return _scores(torch.from_numpy(x.numpy().max((1, 2, 3))))


class Unrecorded(Hard):
    @torch.no_grad()
    def forward(self, x):
        return _scores(x.amax((1, 2, 3)))


class Inference(Hard):
    @torch.inference_mode()
    def forward(self, x):
        return _scores(x.amax((1, 2, 3)))


class Detached(Hard):
    """With weights, whose gradients are no gradients in the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * _scores(x.detach().amax((1, 2, 3)))


class Unwilling(Hard):
    """Its backward pass is an error of its own."""

    def forward(self, x):
        scores = _scores(x.amax((1, 2, 3)))
        if scores.requires_grad:
            scores.register_hook(lambda _: 1 / 0)
        return scores


KINDS = (Hard, Numpy, Unrecorded, Inference, Detached, Unwilling)
DARK = image_set(images(4, (4, 4)) * 0.5, torch.zeros(4, dtype=torch.long), 2)
THREAT = PatchThreat(1, 1)


run = partial(evaluated, data=DARK, threat=THREAT, batch_size=2, certified_budget=200)


@pytest.mark.parametrize("kind", KINDS)
def test_what_needs_no_gradient_is_run_and_said(kind, tmp_path):
    """The default attack breaks false certificates by its black box; a note and run.json name what it leaves out."""
    notes = []
    records = run(kind(), tmp_path, [standard()], on_note=notes.append)
    assert summarise(records).verdict == "broken"
    assert {attack.by for record in records for attack in record.attacks} == {"sparse-rs"}
    assert notes == [
        "the model has no gradient in the image: standard leaves out pgd-20, exhaustive and runs sparse-rs alone"
    ]
    assert json.loads((tmp_path / "run.json").read_text())["left_out"] == notes


@pytest.mark.parametrize("kind", [Hard, Numpy])
@pytest.mark.parametrize(
    "attack",
    [quick(), Ensemble((PatchPGD(),), "one"), Ensemble((Control(content="grey"), ExhaustivePGD()), "two")],
    ids=lambda attack: attack.name,
)
def test_an_ensemble_of_climbs_alone_becomes_a_black_box(attack, kind, tmp_path):
    """Within the budget, an image at a time; controls among the members do not stand for an attack."""
    notes = []
    records = run(kind(), tmp_path, [attack], certified_budget=40, on_note=notes.append)
    assert summarise(records).certified_attacked == 4
    assert all(attack.evaluations <= 42 for record in records for attack in record.attacks)
    assert "sparse-rs alone" in notes[0]


CLIMBS = (PatchPGD(), ExhaustivePGD(), ROA(), LaVAN(), Universal(), FromART.pgd(), FromART.bim(), FromART.apgd())


@pytest.mark.parametrize("attack", CLIMBS, ids=lambda attack: attack.name)
def test_an_attack_that_climbs_is_refused_before_any_work(attack, tmp_path):
    """By its name, with what to use instead; nothing is written."""
    for kind in (Hard, Numpy):
        with pytest.raises(InvalidInput, match=f"attack {attack.name} climbs gradients, but .* use sparse-rs"):
            run(kind(), tmp_path, [SparseRS(queries=5), attack])
        assert not list(tmp_path.iterdir())


def test_the_refusal_names_every_attack_that_goes_without(tmp_path):
    """No name of one that climbs too stands among them, so that nobody is sent from one refusal to the next."""
    with pytest.raises(InvalidInput) as caught:
        run(Numpy(), tmp_path, [PatchPGD()])
    told = str(caught.value).partition("; use ")[2].partition(";")[0]
    free = [name for name in KNOWN if not climbs(parse_attacks(name)[0]) or name in ("standard", "quick")]
    assert {name for name in KNOWN if re.search(rf"\b{name}(?![\w-])", told)} == {*free} - {*CONTROLS}
    for name in {*free}:
        run(Numpy(), tmp_path / name, parse_attacks(name), certified_budget=20)


@pytest.mark.parametrize("attack", CLIMBS[:6], ids=lambda attack: attack.name)
def test_an_attack_that_climbs_says_so_when_it_is_called(attack):
    """Without the evaluator too, and what had been spent by then."""
    x, y = DARK.batch(range(4))
    with pytest.raises(NotDifferentiable, match="no gradient in the image") as caught:
        attack(Numpy().eval(), x, y, THREAT, generator=torch.Generator().manual_seed(0))
    assert caught.value.evaluations is not None
    assert caught.value.evaluations.shape == (4,)


def test_black_boxes_need_none(tmp_path):
    """No note where no attack asks for a gradient."""
    square = FromART.named("SquareAttack", eps=1.0, max_iter=5, tries=2, verbose=False)
    for number, attack in enumerate((SparseRS(queries=20), Control(content="noise"), square)):
        notes = []
        assert len(run(Numpy(), tmp_path / str(number), [attack], on_note=notes.append)) == 4
        assert notes == []


def test_a_climb_of_arts_that_nobody_announced_is_refused_in_one_line(tmp_path):
    """DeepFool is not among those known to climb: it is found out when it asks for a gradient."""
    attack = FromART.named("DeepFool", tries=1, max_iter=2, verbose=False)
    for number, kind in enumerate((Hard, Inference, Unwilling)):
        with pytest.raises(InvalidInput):
            run(kind(), tmp_path / str(number), [attack])


class Sometimes(Hard):
    """Differentiable on the first image and on none that is brighter."""

    def forward(self, x):
        scores = _scores(x.amax((1, 2, 3)))
        return scores if bool((x.mean((1, 2, 3)) < 0.05).any()) else scores.detach()


def test_a_gradient_that_goes_missing_later(tmp_path):
    """The first image has one: later an ensemble goes on without, and a lone climb is refused."""
    x = images(4, (4, 4)) * 0.5
    x[:2] = 0
    data = image_set(x, torch.zeros(4, dtype=torch.long), 2)
    settings = Settings(4, 2, 200, gallery=0)
    records = evaluate(Sometimes().eval(), data, THREAT, [standard()], settings, tmp_path / "all")
    assert summarise(records).verdict == "broken"
    assert [record.attacks[0].by for record in records[2:]] == ["sparse-rs"] * 2
    with pytest.raises(InvalidInput, match="no gradient in the image"):
        evaluate(Sometimes().eval(), data, THREAT, [PatchPGD()], settings, tmp_path / "pgd")


class HardBase(Level):
    def forward(self, encoded):
        return super().forward(encoded).detach()


def test_ours_around_such_networks(tmp_path):
    """A vote of such a base is no more differentiable; nor what an attack that ignores the defense climbs."""
    model = SmoothedClassifier(HardBase(2), Columns(1), num_classes=2).eval()
    notes = []
    run(model, tmp_path / "votes", [standard()], on_note=notes.append)
    assert len(notes) == 1
    with pytest.raises(InvalidInput, match="pgd-20 climbs"):
        run(model, tmp_path / "pgd", [PatchPGD()])

    class Cut(Plain):
        def forward(self, x):
            return super().forward(x).detach()

    defended = parse_defense("patchcleanser:masks=2,patch=1x1").wrap(Cut(16, 2), num_classes=2).eval()
    with pytest.raises(InvalidInput, match="undefended-pgd-20 climbs"):
        run(defended, tmp_path / "bare", [Undefended(PatchPGD())])


def test_other_errors_are_not_blamed_on_gradients():
    """A model that fails without gradients too says its own error; one in training mode is not asked."""

    class Failing(Hard):
        def forward(self, x):
            raise RuntimeError("no such device")

    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(RuntimeError, match="no such device"):
        check_differentiable(Failing().eval(), x)
    with pytest.raises(InvalidInput, match="training mode"):
        check_differentiable(Hard(), x)
    with pytest.raises(MemoryError):
        differentiate(lambda _: (_ for _ in ()).throw(MemoryError()), x)
    with pytest.raises(NotDifferentiable):
        check_differentiable(Hard().eval(), x)
    check_differentiable(Plain(16).eval(), x)


def test_differentiate_is_the_gradient():
    """Values, predictions and gradients of a function that has them, without a graph, the argument untouched."""
    x = torch.rand(3, 1, 2, 2)
    value, prediction, gradient = differentiate(lambda z: ((z**3).sum((1, 2, 3)), z.flatten(1).argmax(1)), x)
    assert torch.allclose(gradient, 3 * x**2)
    assert torch.equal(prediction, x.flatten(1).argmax(1))
    assert not any(tensor.requires_grad for tensor in (value, gradient, x))


def test_failing_memory_is_no_missing_gradient():
    """Else an ensemble would go on without all that climbs, and say nothing."""

    def scarce(x):
        if torch.is_grad_enabled():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return x.flatten(1).sum(dim=1), torch.zeros(len(x), dtype=torch.long)

    def whole(x):
        return x.detach().flatten(1).sum(dim=1), torch.zeros(len(x), dtype=torch.long)

    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(RuntimeError, match="allocate memory"):
        differentiate(scarce, x)
    with pytest.raises(NotDifferentiable):
        differentiate(whole, x)


MODULE = """
import torch
class Hard(torch.nn.Module):
    def forward(self, x): return torch.nn.functional.one_hot((x.amax((1, 2, 3)) > .99).long(), 10).float()
net = Hard()
"""


def test_command_line(tmp_path, monkeypatch):
    """Status 0 and a line that says so; a lone climb ends with status 2 and one line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hard_model.py").write_text(MODULE)
    given = ("--model", "hard_model.py:net", "--dataset", "mnist-sample", "--num-images", 2, "--budget", 60, "--quiet")
    found = call(*given, "--output", tmp_path / "run")
    assert found.exit_code == 0, found.output
    assert "standard leaves out pgd-20, exhaustive and runs sparse-rs alone" in found.stderr
    climbing = call(*given, "--attacks", "roa", "--output", tmp_path / "other")
    refused(climbing, "attack roa climbs gradients")
    refused(climbing, "use sparse-rs, which reads scores alone, or standard or quick, which leave out what needs")
    refused(climbing, "gradients; all others but the controls (grey, noise, natural) climb, roa and exhaustive too")
    assert not (tmp_path / "other").exists()

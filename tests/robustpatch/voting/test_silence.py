"""PITFALLS 29: a patch that makes a base return no numbers for what it touches changes no certified prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustpatch import Sampling, TopOne
from robustpatch.ablations.parse import parse_ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.exact import certify_votes
from robustpatch.certificates.lead import ranks
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.defenses.patchguard import PatchGuard
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.parse import parse_voting
from tests import toys

SIZE, CLASSES = (4, 8), 3
NAN, INF = torch.nan, torch.inf
POISONS = {
    "NaN": [NAN, NAN, NAN],
    "one NaN": [0.0, NAN, 9.0],
    "inf": [INF, INF, INF],
    "one inf": [0.0, INF, 9.0],
    "-inf": [-INF, -INF, -INF],
    "mixed": [-INF, INF, NAN],
}
RULES = ["threshold:0.3", "top1", "scores", "tanh:0.5:0", "relu:4", "sigmoid:0.5"]
ABLATIONS = ["columns:2", "blocks:2", "rows:2", "columns:1+rows:1", "2*grid-columns:2"]


class Overflowing(nn.Module):
    """A class by what is bright; where a view shows a pixel of 1, `poison`, and of 0.99, class 2, loud."""

    def __init__(self, poison: list[float]) -> None:
        super().__init__()
        self.poison = nn.Parameter(torch.tensor(poison))

    def forward(self, view):
        x = view[:, :1]
        mean = (x.sum(dim=(1, 2, 3)) / (x > 0).sum(dim=(1, 2, 3)).clamp(min=1))[:, None]
        logits = 8 * torch.cat([mean - 0.3, 0.2 - mean, mean - 0.6], dim=1)
        loud = torch.tensor([-9.0, -9.0, 9.0]).expand_as(logits)
        logits = torch.where((x == 0.99).flatten(1).any(dim=1, keepdim=True), loud, logits)
        return torch.where((x == 1).flatten(1).any(dim=1, keepdim=True), self.poison, logits)


def scene(seed: int = 0, batch: int = 3) -> torch.Tensor:
    """Images in [0.35, 0.55], without a pixel that the base takes amiss."""
    return 0.35 + 0.2 * toys.images(batch, 1, SIZE, seed)


def placements(threat: PatchThreat) -> list[tuple[slice, slice]]:
    return [
        (slice(row, row + threat.height), slice(column, column + threat.width))
        for row in range(SIZE[0] - threat.height + 1)
        for column in range(SIZE[1] - threat.width + 1)
    ]


def attacked(x: torch.Tensor, threat: PatchThreat, levels: torch.Tensor) -> torch.Tensor:
    """The images [B,C,H,W] under a patch of these levels at each placement, [L,B,C,H,W]."""
    every = []
    for rows, columns in placements(threat):
        changed = x.clone()
        changed[..., rows, columns] = levels
        every.append(changed)
    return torch.stack(every)


def check_kept(model: nn.Module, x: torch.Tensor, threat: PatchThreat, levels: torch.Tensor) -> int:
    """Every certified image keeps its prediction wherever the patch is; how many there are."""
    found = model.certify(x, threat)  # type: ignore[operator]
    answers = model.predict(attacked(x, threat, levels).flatten(0, 1)).unflatten(0, (-1, len(x)))  # type: ignore[operator]
    assert ((answers == found.prediction) | ~found.certified).all()
    return int(found.certified.sum())


def patches(threat: PatchThreat) -> st.SearchStrategy[torch.Tensor]:
    """Levels that silence, that shout, and that do neither."""
    cells = threat.height * threat.width
    level = st.sampled_from([1.0, 0.99, 0.4, 0.0])
    return st.lists(level, min_size=cells, max_size=cells).map(
        lambda some: torch.tensor(some).reshape(threat.height, threat.width)
    )


ONE = PatchThreat(2, 1)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=16)
@given(text=st.sampled_from(ABLATIONS), poison=st.sampled_from(sorted(POISONS)), levels=patches(ONE))
def test_no_silence_changes_a_certified_prediction(rule, text, poison, levels):
    """Every rule and kind of ablation, every placement; all touched views silent, loud for another class, or mixed."""
    model = SmoothedClassifier(
        Overflowing(POISONS[poison]), parse_ablation(text), num_classes=CLASSES, voting=parse_voting(rule)
    ).eval()
    check_kept(model, scene(), ONE, levels)
    if rule != "top1":
        y = torch.tensor([0, 0, 1])
        top = model.certify_top_k(scene(), y, ONE, 2)
        changed = attacked(scene(), ONE, levels)
        found = ranks(model.votes(changed.flatten(0, 1)).counts, y.repeat(len(changed))).unflatten(0, (-1, 3))
        assert ((found < 2) | ~top.certified).all()


def test_some_of_these_are_certified():
    """So that the test above says something; the silent views are heard for nobody."""
    for rule in RULES:
        model = SmoothedClassifier(
            Overflowing(POISONS["NaN"]), parse_ablation("columns:1"), num_classes=CLASSES, voting=parse_voting(rule)
        ).eval()
        assert check_kept(model, scene(), PatchThreat(1, 1), torch.ones(1, 1)) == 3, rule
        changed = attacked(scene(), PatchThreat(1, 1), torch.ones(1, 1))[2]
        votes, clean = model.votes(changed), model.votes(scene())
        assert not votes.cast[:, 2].any()
        others = [n for n in range(8) if n != 2]
        assert torch.equal(votes.cast[:, others], clean.cast[:, others])  # 0 · NaN reaches none of them
        assert not certify_votes(votes, model.ablation, PatchThreat(1, 5), SIZE).certified.any()
        assert torch.equal(votes.lower[:, 2], torch.zeros_like(votes.lower[:, 2]))
        assert (votes.upper[:, 2] == votes.unit).all()


@pytest.mark.parametrize("rule", ["own", "scores", "relu:4"])
@settings(max_examples=8)
@given(poison=st.sampled_from(sorted(POISONS)), levels=patches(ONE))
def test_patchguard(rule, poison, levels):
    """Robust masking of the same."""
    inner = SmoothedClassifier(Overflowing(POISONS[poison]), parse_ablation("columns:1"), num_classes=CLASSES)
    for threshold in (0.0, 0.5):
        model = PatchGuard(window="2x1", threshold=threshold, voting=rule).wrap(inner, num_classes=CLASSES).eval()
        assert check_kept(model, scene(), ONE, levels) or threshold == 0.0
        changed = attacked(scene(), ONE, levels)[2]
        assert torch.equal(model(changed).argmax(dim=1), model.predict(changed))


class Seen(Overflowing):
    """The same of images under masks that show 0.45."""

    def forward(self, view):
        x = view.clamp(min=0)
        return torch.where((x == 1).flatten(1).any(dim=1, keepdim=True), self.poison, super().forward(x * (x < 1)))


@settings(max_examples=60)
@given(poison=st.sampled_from(sorted(POISONS)), levels=patches(PatchThreat(2, 2)), seed=st.integers(0, 5))
def test_patchcleanser(poison, levels, seed):
    """Double masking: a silent view is no dissenter, and does not stand; certified predictions are kept."""
    threat = PatchThreat(2, 2)
    defense = DoubleMasking(masks="2x3", patch="2x2", hidden="0.45")
    model = PatchCleanser(Seen(POISONS[poison]), defense, num_classes=CLASSES).eval()
    assert check_kept(model, scene(seed), threat, levels) > 0
    for changed in attacked(scene(seed), threat, levels)[::9]:
        answer = model.predict(changed)
        assert torch.isfinite(model(changed)).all()
        assert torch.equal(model(changed).argmax(dim=1)[answer >= 0], answer[answer >= 0])


def test_patchcleanser_is_not_silenced():
    """One view that hides the patch is enough: all others are silent, and it is believed."""
    x, defense = scene(), DoubleMasking(masks="2x3", patch="2x2", hidden="0.45")
    model = PatchCleanser(Seen(POISONS["NaN"]), defense, num_classes=CLASSES).eval()
    changed = x.clone()
    changed[..., :2, :2] = 1.0
    assert torch.equal(model.predict(changed), model.predict(x))
    changed[..., :, :] = 1.0
    assert model.predict(changed).tolist() == [-1, -1, -1]
    with pytest.raises(InvalidInput, match="NaN or infinite logits"):
        model.certify(changed, PatchThreat(2, 2))
    with pytest.raises(InvalidInput, match="NaN or infinite logits"):
        model.placement_margins(changed, PatchThreat(2, 2))


@pytest.mark.parametrize(
    "ablation", [parse_ablation("columns:1"), parse_ablation("2*grid-columns:1"), SparseAblation(2)]
)
@pytest.mark.parametrize("poison", ["NaN", "mixed"])
def test_sampled_ablations(ablation, poison):
    """With enumerated and with sparse ones: the class is kept, or it abstains; `certify` refuses what is silent."""
    sampling = Sampling(selection=100, estimation=400, prediction=200)
    model = RandomizedClassifier(
        Overflowing(POISONS[poison]), ablation, num_classes=CLASSES, sampling=sampling, views=32
    ).eval()
    x, threat = scene(batch=2), PatchThreat(1, 1)
    found = model.certify(x, threat)
    assert found.certified.all()
    for changed in attacked(x, threat, torch.ones(1, 1))[::9]:
        answer = model.predict(changed)
        assert ((answer == found.prediction) | (answer == -1)).all()
        assert torch.equal(model.referee().predict(changed), found.prediction)  # type: ignore[operator]
        with pytest.raises(InvalidInput, match="NaN or infinite logits"):
            model.certify(changed, threat)
    assert model.predict(torch.ones(1, 1, *SIZE)).tolist() == [-1]


@pytest.mark.parametrize("rule", RULES)
def test_what_attacks_climb_is_a_number(rule):
    """`forward` and `soft`, with gradients that silent views do not hide; the argmax is `predict`."""
    model = SmoothedClassifier(
        Root(), parse_ablation("columns:2"), num_classes=CLASSES, voting=parse_voting(rule), chunk=3
    ).eval()
    x = scene()
    x[:, :, :, 2] = 1.0  # views 1 and 2 overflow, and the gradient of a root of 0 is infinite
    assert not torch.isfinite(model.logits(x)[:, 1:3]).any()
    for climbed in (model, model.soft):
        leaf = x.clone().requires_grad_()
        out = climbed(leaf)
        assert torch.isfinite(out).all()
        (gradient,) = torch.autograd.grad((out * torch.arange(3)).sum(), leaf)
        assert torch.isfinite(gradient).all()
        assert (gradient[..., [1, 3]] != 0).any()  # of the views beside it, that share these columns
        assert leaf._backward_hooks is None
    assert torch.equal(model(x).argmax(dim=1), model.predict(x))


class Root(nn.Module):
    """Linear, and where a view shows a pixel of 1, what has no number and no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, CLASSES)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[2.0, 1.0], [1.0, 2.0], [-1.0, 1.0]]))

    def forward(self, view):
        x = view[:, :1]
        strange = (1 - x.flatten(1).amax(dim=1, keepdim=True)).sqrt()
        return self.linear(torch.stack([x.sum(dim=(1, 2, 3)), x.square().sum(dim=(1, 2, 3))], dim=1)) + 1e-3 / strange


@pytest.mark.parametrize("rule", RULES)
def test_without_a_single_score(rule):
    """Nothing to go by: -1, and `certify` in each of its forms says what is wrong."""
    model = SmoothedClassifier(
        Overflowing(POISONS["NaN"]), parse_ablation("columns:2"), num_classes=CLASSES, voting=parse_voting(rule)
    ).eval()
    x = torch.cat([scene(batch=1), torch.ones(1, 1, *SIZE)])
    assert model.predict(x)[1] == -1
    assert model.predict(x)[0] >= 0
    asked = [
        lambda: model.certify(x, ONE),
        lambda: model.certify(x, ONE, "margin"),
        lambda: model.largest_certified(x),
        lambda: model.certifiable_scores(x),
        lambda: model.certify_top_k(x, torch.zeros(2, dtype=torch.long), ONE, 1),
    ]
    for ask in asked:
        with pytest.raises(InvalidInput, match=r"NaN or infinite logits.*overflow"):
            ask()


def test_half_precision_overflows():
    """numpy's float16 and ours: 8e4 is infinite there, and the prediction that was certified stands."""
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(4e4) + np.float16(4e4))
    linear = nn.Linear(64, 2)
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[1, :32] = 4e4 * torch.tensor([1.0] * 8 + [-1.0] * 8).repeat(2)
        linear.bias.copy_(torch.tensor([2e4, 0.0]))
    base = nn.Sequential(nn.Flatten(), linear).half()
    model = SmoothedClassifier(base, parse_ablation("columns:1"), num_classes=2, voting=TopOne()).eval()
    x = torch.full((1, 1, 4, 8), 0.1)
    changed = x.clone()
    changed[0, 0, :, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert model.certify(x, PatchThreat(4, 1)).certified.all()
    assert not torch.isfinite(model.logits(changed)).all()
    assert torch.equal(model.predict(changed), model.predict(x))


class Silenced(nn.Module):
    """Class 0, unless a pixel is bright: then no number."""

    def forward(self, x):
        broken = torch.where(x[:, :1].flatten(1).amax(dim=1) == 1, torch.nan, 0.0)
        return torch.stack([1 + broken, broken], dim=1)


@pytest.mark.parametrize("rule", ["top1", "scores"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_patchguard_does_not_certify_a_patch_that_silences_all(rule, threshold):
    """Of four bands of two columns a patch of three touches all; one of a single column does not."""
    columns = parse_ablation("columns:2")
    inner = SmoothedClassifier(Silenced(), columns, num_classes=2, voting=parse_voting(rule)).eval()
    model = PatchGuard(window="1x3", threshold=threshold).wrap(inner, num_classes=2).eval()
    x = torch.zeros(1, 1, 2, 4)
    attacked = x.clone()
    attacked[0, 0, 0, :3] = 1.0
    assert [int(model.predict(some)) for some in (x, attacked)] == [0, -1]
    found = model.certify(x, PatchThreat(1, 3))
    assert found.certified.tolist() == [False]
    assert (found.placement_margin < 0).all()

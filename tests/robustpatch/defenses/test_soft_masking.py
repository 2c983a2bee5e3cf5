"""What attacks climb of PatchCleanser: it names what double masking infers, and where it does not, as it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.defenses import soft_masking
from robustpatch.defenses.double_masking import MaskedPredictions, infer, majority
from robustpatch.defenses.masking import MaskSet
from robustpatch.defenses.soft_masking import soft_inference
from robustpatch.voting.rules import first_argmax
from tests.robustpatch.defenses.test_double_masking import mask_set, plain_inference

MASKS = ["1x1", "1x2", "2x2", "2x3", "2*1x3"]
KINDS = ["ties", "slight", "sure", "odd"]
WHOLE = {text: mask_set(text) for text in MASKS}


def tables(seed: int, masks: MaskSet, images: int, classes: int, kind: str) -> torch.Tensor:
    """Logits [B,U,K] of an arbitrary function: exact ties, leads by rounding alone, or a class that most views name."""
    chance = torch.Generator().manual_seed(seed)
    shape = (images, len(masks.unions), classes)
    if kind == "ties":
        return torch.randint(3, shape, generator=chance).float()
    noise = torch.randn(shape, generator=chance)
    if kind == "slight":
        return 5 + 3e-7 * noise.round()
    if kind == "sure":
        return 40 * noise
    named = torch.randint(classes, (images, 1), generator=chance).expand(shape[:2])
    odd = torch.rand(shape[:2], generator=chance) < 0.2
    named = torch.where(odd, (named + 1) % classes, named)
    return torch.nn.functional.one_hot(named, classes) + 0.4 * noise


def scoring(logits: torch.Tensor):
    return lambda image, union: logits[image, union]


def exception(logits: torch.Tensor, masks: MaskSet) -> list[bool]:
    """Where the surest dissenter falls and another stands, view by view."""
    labels, pair = first_argmax(logits), masks.pair.tolist()
    first, second = logits.topk(2, dim=2).values.unbind(dim=2)
    found, views = [], range(len(pair))
    for label, gap in zip(labels.tolist(), (first - second).tolist(), strict=True):
        own = [label[pair[v][v]] for v in views]
        most = max(sorted(set(own)), key=own.count)
        stands = {v: all(label[pair[v][w]] == own[v] for w in views) for v in views if own[v] != most}
        surest = max(stands, key=lambda v: (gap[pair[v][v]], -v), default=None)
        found.append(surest is not None and not stands[surest] and any(stands.values()))
    return found


@given(
    st.integers(0, 10**6),
    st.sampled_from(MASKS),
    st.integers(2, 11),
    st.sampled_from(["ties", "slight", "sure", "odd"]),
)
def test_the_argmax_is_what_is_inferred_but_for_one_exception(seed, text, classes, kind):
    """Arbitrary functions of image and union, ties and all; the exception is exactly what the docstring says it is."""
    masks = WHOLE[text]
    logits = tables(seed, masks, 30, classes, kind)
    labels = first_argmax(logits)
    expected = torch.tensor([plain_inference(label, masks) for label in labels.tolist()])
    assert torch.equal(infer(MaskedPredictions(masks, len(logits), scoring(logits))), expected)
    named = soft_inference(scoring(logits), masks, torch.arange(len(logits))).argmax(dim=1)
    but = torch.tensor(exception(logits, masks))
    assert torch.equal(named[~but], expected[~but])
    most = majority(labels[:, : len(masks.views)]).long()
    assert torch.equal(named[but], most[but])
    assert (expected[but] != most[but]).all()


def test_the_exception_exists():
    """Three views, three classes: the surest falls under its pair with the last, which stands and is inferred."""
    masks = mask_set("1x3")
    logits = torch.zeros(1, len(masks.unions), 3)
    for v, w, label, lead in ((0, 0, 0, 1), (1, 1, 1, 5), (2, 2, 2, 1), (0, 1, 0, 1), (0, 2, 2, 1), (1, 2, 2, 1)):
        logits[0, masks.pair[v, w], label] = lead
    assert infer(MaskedPredictions(masks, 1, scoring(logits))).tolist() == [2]
    assert soft_inference(scoring(logits), masks, torch.arange(1)).argmax(dim=1).tolist() == [0]
    assert exception(logits, masks) == [True]


def test_it_asks_two_rounds_of_views_at_most():
    """And one of those where all agree."""
    masks = WHOLE["2x3"]
    for kind, most in (("odd", 2 * len(masks.views)), ("agreed", len(masks.views))):
        logits = tables(0, masks, 1, 3, "odd")
        if kind == "agreed":
            logits = torch.tensor([0.0, 3.0, 1.0]).expand_as(logits)
        asked = []

        def score(image, union, seen=logits, asked=asked):
            asked.append(len(union))
            return seen[image, union]

        soft_inference(score, masks, torch.arange(1))
        assert sum(asked) <= most


@pytest.mark.parametrize("kind", ["ties", "slight", "odd"])
def test_lifting_leaves_the_gradient(kind, monkeypatch):
    """What is added is a constant, and no more than the lead that was missing, and a millionth."""
    masks = WHOLE["2x3"]
    leaf = tables(0, masks, 60, 4, kind).requires_grad_()
    weight, gradients, outputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1)), [], []
    for lift in (soft_masking._lifted, lambda scores, own: scores):
        monkeypatch.setattr(soft_masking, "_lifted", lift)
        outputs.append(soft_inference(scoring(leaf), masks, torch.arange(60)))
        gradients += torch.autograd.grad((weight * outputs[-1]).sum(), leaf)
    assert torch.equal(*gradients)
    lifted, plain = outputs
    changed = lifted != plain
    assert changed.any()
    assert (changed.sum(dim=1) <= 1).all()
    assert (lifted.amax(dim=1) <= plain.amax(dim=1) + 2e-6).all()

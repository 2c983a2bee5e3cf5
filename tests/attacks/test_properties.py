"""Promises of every attack, whatever the image, the patch and the classifier; its account and budget; refusals."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attacks import (
    ROA,
    Attack,
    Control,
    ExhaustivePGD,
    FromART,
    LaVAN,
    Oracle,
    PatchAttack,
    PatchPGD,
    SparseRS,
    Universal,
    UniversalPatch,
    judge,
)
from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchcleanser import DoubleMasking, PatchCleanser
from robustpatch.defenses.patchguard import PatchGuard
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.attacks.toys import Level, Lookup, Plain, images, registered, run, smoothed
from tests.toys import one_pass

ATTACKS = {
    **registered(steps=2, restarts=2, rounds=1, queries=6, tries=2, rows=4, candidates=3),
    "oracle": Oracle(levels=(0.0, 1.0)),
}
STEPS = {"eps": 1.0, "max_iter": 3, "verbose": False}
OF_ART = {
    "art-bim": FromART.bim(steps=3, tries=2),
    "art-fgm": FromART.fgm(tries=2),
    "art-apgd": FromART.apgd(steps=3, tries=2),
    "art-square": FromART.named("SquareAttack", p_init=0.1, nb_restarts=1, tries=1, **STEPS),
    "art-targeted": FromART.named("ProjectedGradientDescent", kind="mask", targeted=True, tries=1, **STEPS),
}
"""Kinds of ART's attacks that have no name in the registry."""
SEARCHES = {
    **{name: attack for name, attack in ATTACKS.items() if name not in ("oracle", "standard", "quick")},
    **OF_ART,
    "art-patch": FromART.patch(steps=2, tries=2, side=1),
    "lavan to a class": LaVAN(steps=2, target=1),
    "universal to a class": Universal(steps=3, rows=4, tries=3, target=1),
}
"""Attacks of which each evaluation is its own."""
ART_DRAWS = "art-patch"  # a pixel too large where parities differ: `judge` finds it out of the threat
CERTAIN = ("roa", "roa-gradient", "grey", "oracle")  # here without chance, or none that shows in the patch
REFUSALS = "use pgd|puts down one|ART draws patches on 2x2|oracle would try"
FIELDS = ("x_adv", "corners", "evaluations", "visited")


def a_model(draw, channels, height, width):
    """Smoothed by columns, rows, blocks or cells of a grid, enumerated or in one pass, then masked or not; or not
    smoothed at all, or behind masks.
    """
    model = _a_model(draw, channels, height, width)
    if isinstance(model, SmoothedClassifier) and draw(st.booleans()):
        window = f"{draw(st.integers(1, height))}x{draw(st.integers(1, width))}"
        return (
            PatchGuard(window=window, voting=draw(st.sampled_from(["own", "scores"]))).wrap(model, num_classes=3).eval()
        )
    return model


def _a_model(draw, channels, height, width):
    kinds = [
        "columns",
        "rows",
        "blocks",
        "grid",
        *(f"{kind} in one pass" for kind in ("columns", "rows", "blocks", "grid")),
    ]
    kind = draw(st.sampled_from([*kinds, "plain", "masks"]))
    if kind == "plain":
        return Plain(channels * height * width).eval()
    if kind == "masks":
        masks = DoubleMasking("2", draw(st.sampled_from(["1x1", f"{height}x{width}"])))
        return PatchCleanser(Plain(channels * height * width), masks, num_classes=3).eval()
    size = draw(st.integers(1, min(3, height, width)))
    stride = draw(st.integers(1, size))
    if kind == "blocks":
        return smoothed(Level(3), Blocks(size, size, stride), 3, draw(st.sampled_from([TopOne(1e-6), Threshold(0.3)])))
    if "grid" in kind:
        cells = -(-width // size)
        ablation = draw(st.sampled_from([GridColumns(size, min(2, cells)), GridBlocks(size, 1)]))
    elif "blocks" in kind:
        ablation = Blocks(size, size, stride)
    else:
        ablation = (Columns if "columns" in kind else Rows)(size, stride)
    if "one pass" not in kind:
        return smoothed(Level(3), ablation, 3)
    net = one_pass(ablation, (height, width), channels, 3, seed=draw(st.integers(0, 9)))
    return SmoothedClassifier(net, ablation, num_classes=3, voting=TopOne()).eval()


def a_call(draw):
    """A classifier, images, labels and a threat that fits: single pixels and whole images come often."""
    channels, height, width = draw(st.sampled_from([1, 3])), draw(st.integers(1, 7)), draw(st.integers(1, 7))
    patch = [draw(st.one_of(st.just(1), st.just(length), st.integers(1, length))) for length in (height, width)]
    count = draw(st.integers(1, min(2, height * width)))
    model = a_model(draw, channels, height, width)
    x = images(2, (height, width), channels, seed=draw(st.integers(0, 99)), binary=draw(st.booleans()))
    clean = model.predict(x) if hasattr(model, "predict") else model(x).argmax(dim=1)
    return model, x, draw(st.sampled_from([clean.clamp(min=0), torch.tensor([0, 1])])), PatchThreat(*patch, count)


CALL = {
    "data": st.data(),
    "pruned": st.booleans(),
    "budget": st.sampled_from([None, 1, 40]),
    "seed": st.integers(0, 99),
}


@pytest.mark.parametrize("name", ATTACKS)
@settings(max_examples=12)
@given(**CALL)
def test_promises(name, data, pruned, budget, seed):
    """Contained and in range; honest accounts; nothing of the caller's changed; decided by the generator alone."""
    check_promises(name, ATTACKS[name], data, pruned, budget, seed)


@pytest.mark.parametrize("name", OF_ART)
@settings(max_examples=4)
@given(**CALL)
def test_promises_of_other_attacks_of_arts(name, data, pruned, budget, seed):
    check_promises(name, OF_ART[name], data, pruned, budget, seed)


def chance():
    """The state of the global sources; Python's own is left out, since beartype draws from it."""
    return str(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def check_promises(name, attack, data, pruned, budget, seed):
    model, x, y, threat = a_call(data.draw)
    assume(name != "oracle" or x.shape[1] * threat.height * threat.width * threat.count <= 8)  # it takes its time
    assume(name != "art-square" or min(x.shape[2:]) > 1)  # ART itself draws no square on a line of pixels
    if not pruned:
        attack = attack.unpruned(budget)
    elif name != "oracle":
        attack = replace(attack, budget=budget)
    sources = chance()
    before = [tensor.detach().numpy().tobytes() for tensor in (x, y, *model.state_dict().values())]
    try:
        found = run(attack, model, x, threat, y, seed)
    except InvalidInput as refusal:
        if not any(text in str(refusal) for text in REFUSALS.split("|")):
            raise
        return
    outcome = judge(model, x, y, threat, found)
    assert outcome.in_range.all()
    assert outcome.contained.all() or name == ART_DRAWS
    assert found.x_adv.dtype == x.dtype
    assert (found.evaluations >= 0).all()
    assert ((found.visited >= 0) & (found.visited <= 1)).all()
    assert before == [tensor.detach().numpy().tobytes() for tensor in (x, y, *model.state_dict().values())]
    assert found.x_adv.data_ptr() != x.data_ptr()
    assert not x.requires_grad
    assert not found.x_adv.requires_grad
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert chance() == sources
    torch.rand(5)
    again = run(attack, model, x, threat, y, seed)
    for field in FIELDS:
        assert torch.equal(getattr(found, field), getattr(again, field)), field


TINY, WIDE = (3, 4), PatchThreat(1, 2)


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize("name", SEARCHES)
def test_every_row_that_the_base_sees_is_charged(name, pruned):
    """One evaluation is one row scored; what checkpointing scores again is the backward."""
    model, x = (smoothed(Level(3), Columns(2), 3, chunk=1), images(2, TINY, seed=4))  # beyond a chunk: checkpointed
    model.check_base = lambda *_: None  # what tests the base is no part of an attack
    y, rows = model.predict(x), []
    model.base.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    attack = SEARCHES[name] if pruned else SEARCHES[name].unpruned(None)
    found = run(attack, model, x, WIDE, y)
    assert int(found.evaluations.sum()) == sum(rows)


MANY = registered(tries=99, restarts=60, batch=1)
del MANY["standard"], MANY["quick"], MANY["art-pgd"], MANY["art-patch"]  # with budgets of parts, and of ART's runs


@pytest.mark.parametrize("budget", [1, 7, 33, 120])
@pytest.mark.parametrize("name", MANY)
def test_the_budget_is_kept(name, budget):
    """No try and no step is begun beyond it; unpruned, where there is always one more, none within it is left out."""
    model, x = smoothed(Lookup(0, 24, 3, favour=9.0), Columns(2), 3), images(2, TINY)
    for attack in (replace(MANY[name], budget=budget), MANY[name].unpruned(budget)):
        spent = run(attack, model, x, WIDE).evaluations
        assert (spent < max(budget, 8) + 2 * 4).all()  # 8: the clean images, and the certificate
        assert attack.touched_only or budget == 120 or (spent >= budget).all()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in CERTAIN])
def test_another_seed_is_another_search(name):
    """Where there is chance it comes from the generator: with another seed, another patch."""
    model, x = Plain(35).eval(), images(2, (5, 7))
    y = model(x).argmax(dim=1)
    found = [run(ATTACKS[name], model, x, PatchThreat(2, 2), y, seed) for seed in range(4)]
    assert any(not torch.equal(found[0].x_adv, other.x_adv) for other in found[1:]), name


SIZE = (5, 6)
ONE = PatchThreat(2, 2)
SPOILT = {
    "no batch": (lambda x: x[0], None, ONE, r"images have shape \(1, 5, 6\); pass"),
    "bytes": (lambda x: (x * 255).byte(), None, ONE, "images have dtype torch.uint8; pass"),
    "too bright": (lambda x: x * 255, None, ONE, "images range from .* divide by 255"),
    "negative": (lambda x: x - 1, None, ONE, r"images range from .* must lie in \[0, 1\]"),
    "nan": (lambda x: x * float("nan"), None, ONE, "images contain NaN"),
    "a label too few": (None, lambda y: y[:1], ONE, r"labels have shape \(1,\).* each of the 2 images"),
    "a label too many": (None, lambda y: torch.cat([y, y[:1]]), ONE, r"labels have shape \(3,\)"),
    "labels in a column": (None, lambda y: y[:, None], ONE, r"labels have shape \(2, 1\)"),
    "labels that are floats": (None, lambda y: y.float(), ONE, "labels have .* dtype torch.float32"),
    "labels that are bits": (None, lambda y: y.bool(), ONE, "labels have .* dtype torch.bool"),
    "an abstention for a label": (None, lambda y: y - 1, ONE, "labels range from -1 to 0; they must lie in 0 to"),
    "patch too tall": (None, None, PatchThreat(6, 2), r"patch 6x2 .* larger than the image, 5x6; take at most"),
    "patch too wide": (None, None, PatchThreat(2, 7), r"patch 2x7 .* larger than the image, 5x6; take at most"),
}


OWN_CALLS = ["pgd", *(name for name, attack in ATTACKS.items() if type(attack).__call__ is not Attack.__call__)]
"""One of all attacks that share `Attack.__call__`, and those with one of their own."""


@pytest.fixture
def as_users_call(monkeypatch):
    """Without the suite's own type checks, which come before the attack's."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(name, model, x, y, threat, message):
    """By the attack itself, and before any image was scored."""
    scored = []
    model.register_forward_pre_hook(lambda *_: scored.append(1))
    for attack in (ATTACKS[name], ATTACKS[name].unpruned(50)):
        with pytest.raises(InvalidInput, match=message):
            run(attack, model, x, threat, y)
    assert not scored


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("name", OWN_CALLS)
@pytest.mark.usefixtures("as_users_call")
def test_calls_that_cannot_be_answered(name, spoilt):
    """The message names what is wrong, its value and the remedy; of a bare classifier as of a smoothed one."""
    spoil, relabel, threat, message = SPOILT[spoilt]
    x, y = images(2, SIZE), torch.tensor([0, 1])
    x, y = x if spoil is None else spoil(x), y if relabel is None else relabel(y)
    refused(name, Plain(30).eval(), x, y, threat, message)
    model = smoothed(Level(3), Columns(2), 3)
    refused(name, model, x, y, threat, message)


@pytest.mark.parametrize("name", OWN_CALLS)
def test_a_label_that_is_no_class(name):
    """Where the number of classes is known; on a GPU an index out of range would bring the process down."""
    model = smoothed(Level(3), Columns(2), 3)
    refused(
        name, model, images(2, SIZE), torch.tensor([0, 3]), ONE, "labels range from 0 to 3; they must lie in 0 to 2"
    )


@pytest.mark.parametrize("name", OWN_CALLS)
def test_training_mode(name):
    """Of the classifier as a whole, or of its base alone."""
    x, y = images(2, SIZE), torch.tensor([0, 1])
    refused(name, Plain(30), x, y, ONE, r"training mode.*call model.eval\(\)")
    model = smoothed(Level(3), Columns(2), 3)
    model.base.train()
    refused(name, model, x, y, ONE, r"training mode.*call model.eval\(\)")


@pytest.mark.parametrize("name", {**ATTACKS, **SEARCHES})
def test_every_attack_is_one(name):
    """Unpruned within another budget it has the same name, and leans on no certificate."""
    attack = {**ATTACKS, **SEARCHES}[name]
    assert isinstance(attack, PatchAttack)
    unpruned = attack.unpruned(77)
    assert isinstance(unpruned, PatchAttack)
    assert (unpruned.name, unpruned.touched_only) == (attack.name, False)
    assert name == "oracle" or unpruned.budget == 77  # a part of an enumeration is none


PATCH = UniversalPatch(torch.zeros(1, 1, 2), target=3)


@pytest.mark.parametrize("model", [smoothed(Level(3), Columns(2), 3), Plain(12).eval()], ids=["smoothed", "plain"])
@pytest.mark.parametrize(
    "attack", [LaVAN(target=3), Universal(target=3), Universal(patch=PATCH)], ids=["lavan", "universal", "given"]
)
def test_a_target_that_is_no_class_is_refused(attack, model):
    """Before any work, on a GPU too."""
    with pytest.raises(InvalidInput, match="target is 3; it must be below 3"):
        run(attack, model, images(2, TINY), WIDE)


def control(content, **more):
    return Control(content=content, **more)


NAN = float("nan")
IMPOSSIBLE = [
    (PatchPGD, "steps", 0),
    (PatchPGD, "restarts", 0),
    (PatchPGD, "batch", 0),
    (PatchPGD, "step", 0.0),
    (PatchPGD, "step", NAN),
    (PatchPGD, "budget", 0),
    (PatchPGD, "objective", "margin"),
    (ExhaustivePGD, "steps", 0),
    (ExhaustivePGD, "rounds", -1),
    (ExhaustivePGD, "keep", 0.0),
    (ExhaustivePGD, "keep", 1.5),
    (ExhaustivePGD, "budget", -3),
    (LaVAN, "steps", 0),
    (LaVAN, "step", 0.0),
    (LaVAN, "last", 2.0),
    (LaVAN, "target", -1),
    (LaVAN, "batch", 0),
    (SparseRS, "queries", 0),
    (SparseRS, "alpha", 0.0),
    (SparseRS, "alpha", 1.5),
    (SparseRS, "alpha", NAN),
    (SparseRS, "move_every", 1),
    (SparseRS, "budget", 0),
    (ROA, "candidates", 0),
    (ROA, "stride", 0),
    (ROA, "top", 0),
    (ROA, "steps", 0),
    (ROA, "step", -1.0),
    (ROA, "search", "pink"),
    (partial(control, "grey"), "tries", 0),
    (Control, "content", "pink"),
]


@pytest.mark.parametrize(("kind", "name", "value"), IMPOSSIBLE)
@pytest.mark.usefixtures("as_users_call")
def test_impossible_settings_are_refused(kind, name, value):
    """By name and value."""
    with pytest.raises(InvalidInput, match=f"{name} is '?{value}'?"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"content": "grey", "source": images(1, SIZE)}, "source is given"),
        ({"content": "natural", "source": images(1, SIZE) + 1}, "range from 1"),
        ({"content": "natural", "source": images(1, SIZE)[:0]}, "source is empty"),
    ],
)
def test_sources_that_do_not_serve_are_refused(more, message):
    with pytest.raises(InvalidInput, match=message):
        Control(**more)

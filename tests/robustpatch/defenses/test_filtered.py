"""Defenses that clean the image first: what holds for each of them, and for the attacker's gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacks import PatchPGD, judge
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import toys
from tests.as_evaluator import evaluations

NAMES = ("lgs", "watermarking")
OPTIONS = ("lgs:window=5,overlap=2,factor=1.5", "lgs", "watermarking:threshold=0.4,erode=1,dilate=3", "watermarking")
CLASSES = 4
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def network(channels: int = 1) -> nn.Module:
    """Sees any size of image, and makes saliencies that differ between pixels."""

    def build():
        layers = [nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(24, CLASSES))

    return toys.seeded(build).requires_grad_(False)


def defended(text: str, channels: int = 1):
    return parse_defense(text).wrap(network(channels), num_classes=CLASSES).eval()


@settings(max_examples=30)
@given(st.sampled_from(OPTIONS), sizes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_images_of_any_size_are_cleaned_each_on_its_own_and_never_written_to(text, size, channels, batch, seed):
    """Values stay in [0, 1], company changes nothing, and `predict` is the argmax of `forward`."""
    model, x = defended(text, channels), toys.images(batch, channels, size, seed)
    before = x.clone()
    cleaned = model.clean(x)
    assert cleaned.shape == x.shape
    assert cleaned.dtype == x.dtype
    assert float(cleaned.min()) >= 0
    assert float(cleaned.max()) <= 1
    alone = torch.cat([model.clean(one) for one in x.split(1)])
    assert torch.allclose(alone, cleaned, atol=1e-6)
    assert torch.equal(model.predict(x), model(x).argmax(dim=1))
    assert torch.equal(x, before)


@settings(max_examples=30)
@given(st.sampled_from(OPTIONS), sizes, st.integers(1, 3), st.sampled_from([0.0, 0.3, 1 / 3, 1.0]))
def test_an_image_of_one_colour_is_left_as_it_is(text, size, channels, level):
    """No gradient is divided by its own absence, and what is filled in is the colour around; gradients are finite."""
    model = defended(text, channels)
    x = torch.full((2, channels, *size), level).requires_grad_()
    assert torch.allclose(model.clean(x), x, atol=1e-6)
    gradient = torch.autograd.grad(model(x).sum(), x)[0]
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_identity_is_the_network_s_at_the_cleaned_image(name):
    """Both gradients belong to one value, to the bit."""
    x = toys.images(3, 2, (9, 8))
    through, identity = (defended(f"{name}:gradient={kind}", 2) for kind in ("through", "identity"))
    cleaned = through.clean(x)
    assert not torch.equal(cleaned, x)
    assert torch.equal(through(x), identity(x))
    assert torch.equal(through(x), through.network(cleaned))
    leaf = x.clone().requires_grad_()
    found = torch.autograd.grad(identity(leaf)[:, 1].sum(), leaf)[0]
    leaf = cleaned.clone().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(identity.network(leaf)[:, 1].sum(), leaf)[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_through_is_that_of_finite_differences(name):
    """In double precision at random images, where no threshold is within reach of the step."""
    model = defended(f"{name}:gradient=through", 2).double()
    x = toys.images(1, 2, (6, 5)).double()
    assert not torch.equal(model.clean(x), x)
    assert torch.autograd.gradcheck(model, x.requires_grad_(), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_circumstances_of_a_call_do_not_matter(name):
    """With and without gradients, in inference mode, with weights that require one; no gradient is left behind."""
    model, x = defended(name), toys.images(3, 1, (9, 8))
    answer = model(x)
    with torch.no_grad():
        assert torch.equal(model(x), answer)
    with torch.inference_mode():
        assert torch.equal(model(x.clone()), answer)
    model.requires_grad_(True)
    assert torch.equal(model(x.requires_grad_()), answer)
    assert [p.grad for p in model.parameters()] == [None] * len(list(model.parameters()))
    assert x.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_half_the_precision_predict_too(name):
    model, x = defended(name), toys.images(4, 1, (9, 8))
    assert model.to(torch.bfloat16).predict(x).shape == (4,)
    assert model(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_a_smoothed_classifier_is_defended_too(name):
    """Its votes are of the cleaned image, and an evaluation is one of its ablations."""
    inner = SmoothedClassifier(toys.linear(), toys.Columns(2), num_classes=CLASSES).eval()
    model, x = parse_defense(name).wrap(inner, num_classes=CLASSES).eval(), toys.images(3)
    assert torch.equal(model.predict(x), inner.predict(model.clean(x)))
    each = 8 * (3 if name == "watermarking" else 1)
    assert evaluations(model, x) == (each, each)


@pytest.mark.parametrize("text", [f"{name}:gradient={kind}" for name in NAMES for kind in ("through", "identity")])
def test_an_attack_in_the_loop_breaks_the_shipped_network(text):
    """Five placements of gradient descent through the defense change an image that it reads right; `judge` agrees."""
    net = load_checkpoint("mnist-undefended").model.requires_grad_(False)
    model = parse_defense(text).wrap(net, num_classes=10).eval()
    x, y = load_images("mnist-sample").batch(range(12))
    right = model.predict(x) == y
    x, y, threat = x[right], y[right], PatchThreat(5, 5)
    attack = PatchPGD(steps=10, restarts=5)
    proposal = attack(model, x, y, threat, generator=torch.Generator().manual_seed(0))
    assert judge(model, x, y, threat, proposal).broken.any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lgs:window=0", "window is 0; it must be at least 1"),
        ("lgs:overlap=15", "overlap is 15; it must be at least 0 and less than the window, 15"),
        ("lgs:overlap=-1", "overlap is -1"),
        ("lgs:threshold=nan", "threshold is 'nan'; give a finite number"),
        ("lgs:factor=inf", "factor is 'inf'; give a finite number"),
        ("lgs:gradient=sideways", "gradient is 'sideways'; it must be through or identity"),
        ("watermarking:threshold=1", "threshold is 1.0; it must be in"),
        ("watermarking:erode=2", "erode is 2; it must be odd and at least 1"),
        ("watermarking:dilate=-1", "dilate is -1; it must be odd"),
        ("watermarking:gradient=", "gradient is ''"),
    ],
)
def test_options_out_of_range_are_refused(text, said):
    with pytest.raises(InvalidInput, match=f"defense {text.partition(':')[0]}: {said}"):
        parse_defense(text)

"""The speed that the project promises, as ratios: `make bench`. No time is asserted."""

from __future__ import annotations

import pytest
import torch

from attacks.surfaces import whole_view
from attacks.surfaces.smoothed import TouchedView
from robustpatch import Columns, PatchThreat, SmoothedClassifier, certify_votes
from robustpatch.data.images import load_images
from robustpatch.networks import MnistCNN

THREAT = PatchThreat(5, 5)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_images("mnist-sample").batch(range(256))[0]


@pytest.fixture(scope="module")
def strips() -> SmoothedClassifier:
    return SmoothedClassifier.from_pretrained("mnist-columns2").requires_grad_(False)


@pytest.fixture(scope="module")
def enumerated() -> SmoothedClassifier:
    """The paper's network, untrained: the time does not depend on the weights."""
    return SmoothedClassifier(MnistCNN(), Columns(2), num_classes=10).eval().requires_grad_(False)


@torch.no_grad()
def test_certify_against_bare_forward(against, enumerated, images) -> None:
    """Certifying by enumeration against the base alone on the same N·B ablated inputs, ready-made."""
    x = images[:64]
    masks = enumerated.ablation.masks(28, 28)
    inputs = enumerated.encoding(x.repeat_interleave(len(masks), 0), masks.repeat(len(x), 1, 1))
    against(
        "certify by enumeration / bare forward",
        lambda: enumerated.certify(x, THREAT),
        lambda: [enumerated.base(some) for some in inputs.split(2674)],
        rounds=9,
        target="at most 1.10",
    )


@torch.no_grad()
def test_one_pass_against_own_enumeration(against, strips, images) -> None:
    """One pass against the same weights called once for each ablation, on the image of which only that band is left."""
    x = images[:64]
    masks = strips.ablation.masks(28, 28)

    def enumeration() -> torch.Tensor:
        return torch.stack([strips.scores(torch.where(mask, x, 0))[:, n] for n, mask in enumerate(masks)], dim=1)

    assert (enumeration() - strips.scores(x)).abs().max() <= strips.guard
    against(
        "enumeration of the same weights / one pass",
        lambda: strips.scores(x),
        enumeration,
        rounds=5,
        target="at least 10",
        inverse=True,
    )


@torch.no_grad()
def test_one_pass_against_paper_network(against, strips, enumerated, images) -> None:
    """Certifying with the strip network against certifying with the paper's network by enumeration."""
    x = images[:64]
    against(
        "certify by the paper's CNN / by one pass",
        lambda: strips.certify(x, THREAT),
        lambda: enumerated.certify(x, THREAT),
        rounds=5,
        target="none set",
        inverse=True,
    )


@torch.no_grad()
def test_exact_certificate_against_network(against, strips, images) -> None:
    """The exact certificate, from votes, against the forward pass that the votes come from."""
    votes = strips.votes(images)
    against(
        "exact certificate / network forward",
        lambda: certify_votes(votes, strips.ablation, THREAT, (28, 28)),
        lambda: strips.scores(images),
        rounds=9,
        target="under 0.05",
    )


def test_incremental_against_full_scoring(against, strips, images) -> None:
    """One attack step, forward and backward, re-scoring the touched ablations alone against all of them."""
    y, votes = strips.predict(images), strips.votes(images)
    placement = torch.arange(len(images))[:, None] * 2
    touched = strips.ablation.touched(THREAT, 28, 28)
    some, whole = TouchedView.of(strips, y, votes.cast, touched, placement), whole_view(strips, images, y)

    def step(victim) -> torch.Tensor:
        x = images.clone().requires_grad_()
        return torch.autograd.grad(victim(x)[0].sum(), x)[0]

    against(
        "full re-scoring / incremental, one attack step",
        lambda: step(some),
        lambda: step(whole),
        rounds=9,
        target="at least 3",
        inverse=True,
    )

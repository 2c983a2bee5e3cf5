"""Certifying images against what a user would take instead, on the same base and the same votes: `make bench`.

Levine & Feizi's loop, written anew: one ablation after the other is laid over the batch and scored, votes are added up,
and the lead is compared with twice the most ablations that a patch can touch. ART's `eval_and_certify` is that loop in
its own code. No time is asserted; that all three make the same votes is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluate.audit.art import ARTCertifier, art_factory
from robustpatch import PatchThreat, SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.networks import MnistCNN
from robustpatch.voting.rules import Threshold

THREAT, IMAGES = PatchThreat(5, 5), 32


class OneView(nn.Module):
    """The base of a smoothed classifier, shown a batch of images of which one and the same ablation is left, [B,2C,H,W]
    with x and 1 - x where a pixel is kept. It scores that ablation alone.
    """

    def __init__(self, model: SmoothedClassifier) -> None:
        super().__init__()
        self.model = model
        masks = model.ablation.masks(28, 28)
        self.number = {tuple(mask.flatten().tolist()): n for n, mask in enumerate(masks)}

    def forward(self, shown: Tensor) -> Tensor:
        if not self.model.one_pass:
            return self.model.base(shown)
        kept = shown[0].sum(dim=0) > 0.5
        number = torch.tensor([self.number[tuple(kept.flatten().tolist())]])
        return self.model.logits(shown[:, :1], number)[:, 0]


def theta(model: SmoothedClassifier) -> float:
    assert isinstance(model.voting, Threshold)
    return model.voting.theta


@torch.no_grad()
def the_papers_loop(model: SmoothedClassifier, base: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Levine & Feizi's Algorithms 1 and 2: the votes [B,K], and which images their margin certifies."""
    counts, ablation = torch.zeros(len(x), model.num_classes, dtype=torch.long), model.ablation
    for mask in ablation.masks(28, 28):
        shown = torch.cat([torch.where(mask, x, 0), torch.where(mask, 1 - x, 0)], dim=1)
        counts += base(shown).softmax(dim=1) >= theta(model)
    found, order = counts.sort(dim=1, descending=True, stable=True)
    lead, needed = found[:, 0] - found[:, 1], 2 * ablation.affected(THREAT, 28, 28)
    return counts, (lead > needed) | ((lead == needed) & (order[:, 0] < order[:, 1]))


def by_art(model: SmoothedClassifier, base: nn.Module) -> ARTCertifier:
    kind, _, size = str(model.ablation).partition(":")
    options: dict[str, Any] = {"threshold": theta(model)}
    make = art_factory("levine2020", kind.removesuffix("s"), int(size), **options)
    made = make(base, 10, (1, 28, 28))
    assert isinstance(made, ARTCertifier)
    return made


def classifiers() -> dict[str, SmoothedClassifier]:
    """Shipped ones, whose base scores all ablations in one pass; and columns by the paper's network, untrained."""
    shipped = {name: SmoothedClassifier.from_pretrained(name) for name in ("mnist-columns2", "mnist-blocks8")}
    paper = SmoothedClassifier(MnistCNN(), shipped["mnist-columns2"].ablation, num_classes=10).eval()
    return {**shipped, "the paper's network on columns": paper}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("other", ["the paper's loop", "ART"])
@pytest.mark.parametrize("name", ["mnist-columns2", "mnist-blocks8", "the paper's network on columns"])
@torch.no_grad()
def test_certify_against_the_papers_loop_and_art(against, name, other) -> None:
    """`certify`, which is exact, against the loop and against ART's: the same votes, and never fewer certified."""
    torch.manual_seed(0)
    model = classifiers()[name].requires_grad_(False)
    x, base = load_images("mnist-sample").batch(range(IMAGES))[0], OneView(model)
    ours, art = model.certify(x, THREAT), by_art(model, base)
    if other == "ART":
        assert torch.equal(art.certify(x, THREAT).prediction, ours.prediction)
    else:
        counts, certified = the_papers_loop(model, base, x)
        assert torch.equal(counts, model.votes(x).counts.long())
        assert bool((ours.certified | ~certified).all())
    against(
        f"certify {IMAGES} images, {name}: {other} / certify",
        lambda: model.certify(x, THREAT),
        lambda: art.certify(x, THREAT) if other == "ART" else the_papers_loop(model, base, x),
        rounds=3,
        target="none set",
        inverse=True,
    )

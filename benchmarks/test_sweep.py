"""The cost that a sweep adds to one scoring of the images, as ratios: `make bench`. No time is asserted."""

from __future__ import annotations

import pytest
import torch

from evaluate.sweep import certify_scores
from robustpatch import Blocks, PatchThreat, SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.networks import BlockNet
from robustpatch.voting.rules import Threshold

VOTINGS, PATCHES = tuple(Threshold(theta) for theta in (0.2, 0.3, 0.4)), (PatchThreat(5, 5),)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return load_images("mnist-sample").batch(range(500))[0]


@torch.no_grad()
def test_columns(against, images) -> None:
    """Three thresholds, a patch and squares of all sides, by both certificates, against one scoring in one pass."""
    model = SmoothedClassifier.from_pretrained("mnist-columns2").requires_grad_(False)
    scores = model.certifiable_scores(images)
    against(
        "sweep of 3 thresholds and all sides / one scoring, columns in one pass",
        lambda: [certify_scores(model, scores, (28, 28), voting, PATCHES) for voting in VOTINGS],
        lambda: model.scores(images),
        rounds=7,
        target="under 0.2",
    )


@torch.no_grad()
def test_blocks(against, images) -> None:
    """The same for 784 blocks in one pass.

    The votes are those of the columns, each ablation seven times in ten: the untrained network has none to certify.
    """
    columns = SmoothedClassifier.from_pretrained("mnist-columns2").requires_grad_(False)
    network = BlockNet(Blocks(8), image_size=(28, 28), num_classes=10)
    model = SmoothedClassifier(network, Blocks(8), num_classes=10).eval().requires_grad_(False)
    x = images[:200]
    spread = columns.certifiable_scores(x)[:, None].expand(-1, 28, -1, -1).flatten(1, 2)
    cast = torch.rand(spread.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.7
    scores = torch.where(cast[..., None], spread, 0.1)
    assert certify_scores(model, scores, (28, 28), VOTINGS[1], PATCHES)["largest_certified"].max() > 5
    against(
        "sweep of 3 thresholds and all sides / one scoring, 784 blocks in one pass",
        lambda: [certify_scores(model, scores, (28, 28), voting, PATCHES) for voting in VOTINGS],
        lambda: model.scores(x),
        rounds=5,
        target="under 1",
    )

"""Attacks at equal cost: how many images each breaks, and for how many evaluations. `make bench`; slow, on real images.

The images are the first 50 of the sample that are classified correctly and not certified: no attack can break others.
"""

from __future__ import annotations

import pytest
import torch

from attacks import ExhaustivePGD, PatchAttack, PatchPGD, SparseRS, judge, standard
from robustpatch import PatchThreat, SmoothedClassifier
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.data.images import load_images

THREAT, IMAGES = PatchThreat(5, 5), 50
TWO, MORE = PatchThreat(3, 3, 2), 100


@pytest.fixture(scope="module")
def contest():
    """The classifier, and the images that are open to attack."""
    model = SmoothedClassifier.from_pretrained("mnist-columns2").requires_grad_(False)
    x, y = load_images("mnist-sample").batch(range(500))
    certificate = model.certify(x, THREAT)
    rows = ((certificate.prediction == y) & ~certificate.certified).nonzero()[:IMAGES, 0]
    return model, x[rows], y[rows]


ATTACKS = {
    "standard": standard,
    "sparse-rs, 10,000 queries": SparseRS,
    "pgd-published, 150 steps × 80": PatchPGD.published,
}


@pytest.mark.timeout(0)  # the published attack takes many minutes
@pytest.mark.parametrize("name", ATTACKS)
def test_images_broken(benchmark, broken, contest, name) -> None:
    """One run; each image is left alone once it is broken, the published attack's too."""
    model, x, y = contest
    attack: PatchAttack = ATTACKS[name]()
    found = []

    def run() -> None:
        proposal = attack(model, x, y, THREAT, generator=torch.Generator().manual_seed(0))
        found.append((judge(model, x, y, THREAT, proposal).broken, proposal.evaluations))

    benchmark.pedantic(run, rounds=1, iterations=1)
    hits, evaluations = found[0]
    benchmark.extra_info.update(broken=int(hits.sum()), evaluations=int(evaluations.sum()))
    broken(name, int(hits.sum()), len(x), int(evaluations.sum()), benchmark.stats.stats.mean)


@pytest.mark.timeout(0)
@pytest.mark.parametrize(("checkpoint", "budget"), [("mnist-2columns1", 20_000), ("mnist-2blocks4", 20_000), ("", 500)])
def test_images_broken_by_two_patches(benchmark, broken, checkpoint, budget) -> None:
    """The joint search of two 3x3 patches, on images that are right and not certified; "": of the undefended network.

    Broken of 100, at seed 0: 38, 40 and 88; 41, 38 and 88 before it began with places chosen together. At twice the
    budget `standard` broke 33, 24 and 82 before there was a joint search.
    """
    model = load_checkpoint(checkpoint or "mnist-undefended").model.eval().requires_grad_(False)
    x, y = load_images("mnist-sample").batch(range(500))
    open_ = as_classifier(model).predict(x) == y
    if isinstance(model, SmoothedClassifier):
        open_ &= ~model.certify(x, TWO).certified
    x, y = x[open_][:MORE], y[open_][:MORE]
    attack, found = ExhaustivePGD(budget=budget), []

    def run() -> None:
        proposal = attack(model, x, y, TWO, generator=torch.Generator().manual_seed(0))
        found.append((judge(model, x, y, TWO, proposal).broken, proposal.evaluations))

    benchmark.pedantic(run, rounds=1, iterations=1)
    hits, evaluations = found[0]
    benchmark.extra_info.update(broken=int(hits.sum()), evaluations=int(evaluations.sum()))
    name = f"two patches, {checkpoint or 'undefended'}, {budget:,}"
    broken(name, int(hits.sum()), len(x), int(evaluations.sum()), benchmark.stats.stats.mean)

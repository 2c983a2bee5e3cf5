"""The cost of certifying by the other defenses, each against its own naive form: `make bench`. No time is asserted."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from evaluate.model.float32 import off_float32
from robustpatch import PatchThreat, SmoothedClassifier, certify_votes
from robustpatch.certificates.robust_masking import incidence
from robustpatch.checkpoints import load_checkpoint
from robustpatch.data.images import load_images
from robustpatch.defenses.double_masking import certify
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.defenses.patchguard import MaskedClassifier, PatchGuard
from robustpatch.voting.rules import first_argmax
from robustpatch.voting.scored import SummedScores
from robustpatch.voting.votes import Scored

THREAT = PatchThreat(5, 5)


@pytest.fixture(scope="module")
def cleanser() -> PatchCleanser:
    model = load_checkpoint("mnist-patchcleanser").model
    assert isinstance(model, PatchCleanser)
    return model.requires_grad_(False)


@torch.no_grad()
def naive(model: PatchCleanser, x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Xiang et al.'s Algorithms 1 and 2 as printed, image by image: all ordered pairs of masks for the certificate, and
    the inference with forward passes of its own. Which images are certified, and the number of masked images scored.
    """
    pair, certified, scored = model.defense.mask_set(*x.shape[2:]).pair, [], 0

    def labels(image: torch.Tensor, unions: torch.Tensor) -> torch.Tensor:
        nonlocal scored
        scored += len(unions)
        return first_argmax(model.logits(image[None], torch.zeros_like(unions), unions))

    for image in x:
        found = labels(image, pair.diag())
        majority = int(found.mode().values)
        for view in (found != majority).nonzero()[:, 0]:
            if (labels(image, pair[view]) == found[view]).all():
                break
        every = labels(image, pair.flatten())
        certified.append(bool((every == every[0]).all()))
    return torch.tensor(certified), scored


@torch.no_grad()
def test_patchcleanser_lazy_and_shared_against_naive(against, cleanser) -> None:
    """The time, and in the name the masked images scored: of all images, and of those that are not certified."""
    x = load_images("mnist-sample").batch(range(20))[0]
    (looks,) = cleanser.looks(x)
    certified = certify(looks, cleanser.guard)[1]
    assert torch.equal(certified, naive(cleanser, x)[0])
    times = [naive(cleanser, x[some])[1] / int(looks.evaluations[some].sum()) for some in (certified, ~certified)]
    whole = naive(cleanser, x)[1] / int(looks.evaluations.sum())
    against(
        f"PatchCleanser, all ordered pairs and inference apart / lazy and shared ({whole:.3g} times the masked images; "
        f"where certified {times[0]:.3g}, else {times[1]:.3g})",
        lambda: cleanser.certify(x, THREAT),
        lambda: naive(cleanser, x),
        rounds=3,
        target="at least 3",
        inverse=True,
    )


@torch.no_grad()
def test_patchcleanser_in_bfloat16_against_naive(against, cleanser) -> None:
    """The same in bfloat16, whose guard is half a logit and whose logits are held against float32's."""
    x, reduced = load_images("mnist-sample").batch(range(20))[0], deepcopy(cleanser).to(torch.bfloat16)
    found, plain = reduced.certify(x, THREAT), cleanser.certify(x, THREAT)
    off = off_float32(reduced, x)
    assert off is not None
    assert off <= reduced.guard
    kept = f"{int(found.certified.sum())} of 20 certified, {int(plain.certified.sum())} in float32"
    against(
        f"PatchCleanser as printed / lazy and shared in bfloat16 (logits differ by {off:.2g}; {kept})",
        lambda: reduced.certify(x, THREAT),
        lambda: naive(cleanser, x),
        rounds=3,
        target="at least 4",
        inverse=True,
    )


@pytest.fixture(scope="module")
def scored() -> tuple[Scored, SmoothedClassifier]:
    """The softmax scores of 20 images by the shipped columns, in whole units."""
    model = load_checkpoint("mnist-columns2", voting=SummedScores()).smoothed.requires_grad_(False)
    votes = model.votes(load_images("mnist-sample").batch(range(20))[0])
    assert isinstance(votes, Scored)
    return votes, model


def test_scored_votes_against_placement_by_placement(against, scored) -> None:
    """The exact certificate of summed scores, against its inequality at each placement, all classes at once."""
    votes, model = scored
    members = [THREAT.footprint(place[None], 28, 28) for place in THREAT.placements(28, 28)]
    sets = [torch.stack([one[:, [i, (i + 1) % 28]].any() for i in range(28)]) for one in members]

    def by_placement() -> torch.Tensor:
        return torch.stack([_margin(votes, votes.counts, touched, touched) for touched in sets], dim=1)

    def certificate() -> torch.Tensor:
        found = certify_votes(votes, model.ablation, THREAT, (28, 28), guard=0.0).placement_margin
        assert found is not None
        return found

    assert torch.equal(by_placement(), certificate())
    against(
        "scores, placement by placement / exact certificate",
        certificate,
        by_placement,
        rounds=5,
        target="none set",
        inverse=True,
    )


def test_patchguard_against_window_by_window(against, scored) -> None:
    """Robust masking's certificate, against its rule for each set that a patch touches and each window in turn."""
    votes, model = scored
    guarded = PatchGuard(window="5x5").wrap(model, num_classes=10).eval()
    assert isinstance(guarded, MaskedClassifier)
    masking = guarded.masking(28, 28)
    sets = incidence(model.ablation, THREAT, (28, 28))
    left = masking.remainder(votes.cast)[1]

    def by_window() -> torch.Tensor:
        each = [
            torch.stack([_margin(votes, left, own | w, own, 0) for w in masking.windows]).amin(dim=0) for own in sets
        ]
        return torch.stack(each, dim=1)

    def certificate() -> torch.Tensor:
        return masking.margins(votes, first_argmax(left), sets)

    assert torch.equal(by_window(), certificate())
    against(
        "PatchGuard, window by window / certificate", certificate, by_window, rounds=5, target="none set", inverse=True
    )


def _margin(
    votes: Scored, counts: torch.Tensor, own: torch.Tensor, rivals: torch.Tensor, gained: int | None = None
) -> torch.Tensor:
    """The least lead of each prediction where it loses the ablations `own`, and its rivals lose `rivals` and gain there
    a unit each, or `gained`.
    """
    c = first_argmax(counts)[:, None]
    number = torch.arange(counts.shape[1])
    possible = votes.upper[:, ~rivals].sum(dim=1) + (votes.unit * int(rivals.sum()) if gained is None else gained)
    lead = votes.lower[:, ~own].sum(dim=1).gather(1, c) - possible - (number < c).long()
    return lead.masked_fill(number == c, torch.iinfo(torch.int64).max).amin(dim=1)

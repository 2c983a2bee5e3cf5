"""What certifying by the other defenses costs, each against its own naive form: `make bench`. No time is asserted."""

from __future__ import annotations

import pytest
import torch

from robustpatch import PatchThreat
from robustpatch.data import load_images
from robustpatch.defenses.double_masking import certify
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.voting import first_argmax
from robustpatch.zoo import load_checkpoint

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

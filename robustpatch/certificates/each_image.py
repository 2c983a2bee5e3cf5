"""Certificates against threats that have other places on every image, as those in a region of each image's own have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.certificates.certificate import NO_PLACE, Certificate, Method
from robustpatch.certificates.margins import exact_margins, paper_margins
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.within_each import InEach
from robustpatch.voting.votes import Scored, Votes


def certify_each(
    certify: Callable[[Tensor, Threat], Certificate], x: Float[Tensor, "B C H W"], threat: Threat
) -> Certificate:
    """The certificate that `certify` gives image by image, each against the threat as it is there (`Threat.of_image`).

    An image on which the threat has no place is certified where it is against the patch anywhere. There are no
    `placement_margin` and no `evidence`.
    """
    if len(x) == 0:
        return replace(certify(x, threat.everywhere), threat=threat, placement_margin=None, evidence=None)
    found = [certify(image[None], threat.of_image(image) or threat.everywhere) for image in x]
    margins = [one.margin for one in found if one.margin is not None]
    return replace(
        found[0],
        prediction=torch.cat([one.prediction for one in found]),
        certified=torch.cat([one.certified for one in found]),
        margin=torch.cat(margins) if len(margins) == len(found) else None,
        placement_margin=None,
        threat=threat,
        guard=max(one.guard for one in found),
        close=torch.cat([one.close for one in found]),
        evidence=None,
    )


def margins_of_each(
    votes: Votes | Scored,
    c: Int[Tensor, " B"],
    ablation: Ablation,
    threat: Patches,
    x: Float[Tensor, "B C H W"] | None,
    method: Method,
) -> tuple[Int[Tensor, " B"], Int[Tensor, "B L"] | None]:
    """The margins of `certify_votes` against a threat that depends on the image, and those of each placement.

    Every placement of the patch has a margin of its own, so that of an image is the least over the places it allows.
    """
    if not isinstance(threat, InEach) or x is None or len(x) != len(c):
        raise InvalidInput(f"threat is {threat}, which depends on the images; pass the clean images [B,C,H,W] as x")
    alone = paper_margins(votes, c, 0)  # of images without a place
    size = (x.shape[2], x.shape[3])
    if threat.count > 1:
        return _of_unions(votes, c, ablation, threat, x, method, alone), None
    touched = ablation.touched(threat.patch, *size)
    allowed = threat.places(x).to(c.device)
    of_placement = touched.set_of_placement.to(c.device)
    if method == "margin":
        most = (touched.sizes.to(c.device)[of_placement] * allowed).amax(dim=1)
        return alone - 2 * votes.unit * most, None
    worst = exact_margins(votes, c, touched, 1)[:, of_placement]
    worst = torch.where(allowed, worst, NO_PLACE)
    return torch.minimum(worst.amin(dim=1), alone), worst


def check_same_places(threat: Threat, what: str) -> None:
    """Raise `InvalidInput` where the threat has other places on every image, which `what` is not certified against."""
    if threat.varies:
        raise InvalidInput(
            f"threat is {threat}, which depends on the image, and {what} is certified of all images alike; ask image "
            "by image, about threat.of_image(image)"
        )


def _of_unions(
    votes: Votes | Scored,
    c: Int[Tensor, " B"],
    ablation: Ablation,
    threat: InEach,
    x: Float[Tensor, "B C H W"],
    method: Method,
    alone: Int[Tensor, " B"],
) -> Int[Tensor, " B"]:
    """The margins against several patches: of each image the worst union of what its own places touch."""
    margins = alone.clone()
    for i, image in enumerate(x):
        own, rows = threat.of_image(image), slice(i, i + 1)
        if own is None:
            continue
        touched = ablation.touched(own, *image.shape[1:])
        if method == "margin":
            margins[i] -= 2 * votes.unit * touched.most(own.count)
        else:
            margins[i] = exact_margins(votes.of(rows), c[rows], touched, own.count).amin()
    return margins

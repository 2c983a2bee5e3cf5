"""Double masking made soft, for gradients of attacks; and the masks worst for an image, to train on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from robustpatch.defenses.double_masking import SILENT, Score, majority, named
from robustpatch.defenses.masking import MaskSet
from robustpatch.voting.silence import names_class

_ABOVE = 1e-6  # of scores up to 2: more than what float32 rounds off, less than tells an attack anything


def soft_inference(score: Score, masks: MaskSet, image: Int[Tensor, " B"]) -> Float[Tensor, "B K"]:
    """The mean softmax of all views, in which the surest dissenting view may raise its class. Its argmax is the class
    that double masking infers, ties included, but where that dissenter falls and another stands: there it is the
    majority's. Whether another stands takes the unions of every dissenter with every view to know, all that there are
    where many dissent; here no image is asked more than two rounds of views.

    With a = min over second views of p_c - max_j≠c p_j, for the class c that the dissenter names: for a > 0 it stands,
    and c gets a more than the class on top; else c lies the nearer to that the nearer a is to 0. Where the class that
    is inferred is not the largest by this, as the mean's need not be the majority's, it is lifted above the others, its
    gradient left as it is. A view without a largest logit is silent, as in `double_masking.infer`: it adds nothing.
    """
    every = torch.arange(len(masks.views), device=image.device).expand(len(image), -1)
    logits = score(image[:, None].expand_as(every).flatten(), every.flatten()).unflatten(0, every.shape)
    labels, gap = named(logits.detach())
    shares = torch.where((labels == SILENT)[..., None], 0, _softmax(logits)).mean(dim=1)
    inferred = majority(labels)
    dissents = (labels != inferred[:, None]) & (labels != SILENT)
    rows = dissents.any(dim=1).nonzero()[:, 0]
    surest = gap.masked_fill(~dissents, -1).argmax(dim=1)[rows]
    union = masks.pair.to(image.device)[surest]
    seen = score(image[rows, None].expand_as(union).flatten(), union.flatten()).unflatten(0, union.shape)
    own = labels[rows, surest][:, None]
    stands = (named(seen.detach())[0] == own).all(dim=1)
    inferred[rows] = torch.where(stands, own[:, 0], inferred[rows])
    dissenter = own[:, None].expand(-1, union.shape[1], 1)
    standing = _lead(_softmax(seen), dissenter).amin(dim=1, keepdim=True)
    top, mean = shares[rows].amax(dim=1, keepdim=True), shares[rows].gather(1, own)
    raised = top + standing * torch.where(standing > 0, 1, top - mean)
    return _lifted(shares.index_put((rows[:, None], own), raised), inferred[:, None].clamp(min=0))


def _softmax(logits: Float[Tensor, "*any K"]) -> Float[Tensor, "*any K"]:
    """The softmax; where no class has the largest logit all are alike, without a gradient."""
    return torch.where(names_class(logits.detach())[..., None], logits, 0).softmax(dim=-1)


def _lifted(scores: Float[Tensor, "B K"], own: Int[Tensor, "B 1"]) -> Float[Tensor, "B K"]:
    """The scores, where that of class `own` is not the sole largest with it just above the others; gradients stay."""
    value = scores.detach()
    lead = _lead(value, own)[:, None]
    return scores + torch.zeros_like(value).scatter(1, own, torch.where(lead > 0, 0, _ABOVE - lead))


def _lead(scores: Float[Tensor, "... K"], own: Int[Tensor, "... 1"]) -> Float[Tensor, "..."]:
    """Returns the score of a class less the largest of the others."""
    return scores.gather(-1, own)[..., 0] - scores.scatter(-1, own, -torch.inf).amax(dim=-1)


@torch.no_grad()
def worst_unions(
    score: Score, masks: MaskSet, y: Int[Tensor, " B"], first: Int[Tensor, "B n"], second: Int[Tensor, "B n"]
) -> Int[Tensor, " B"]:
    """Of the views `first` of each image the one with the largest loss, with that of `second` which makes it worst.

    With all views that is the greedy search of Saha et al. 2023 ("greedy cutout").
    """
    view = worst_union(score, y, first)
    return worst_union(score, y, masks.pair.to(view.device)[view[:, None], second])


@torch.no_grad()
def worst_union(score: Score, y: Int[Tensor, " B"], union: Int[Tensor, "B n"]) -> Int[Tensor, " B"]:
    """Of these unions of each image the one with the largest loss."""
    image = torch.arange(len(union), device=union.device)[:, None].expand_as(union).flatten()
    loss = cross_entropy(score(image, union.flatten()), y[image], reduction="none").view_as(union)
    return union.gather(1, loss.argmax(dim=1, keepdim=True))[:, 0]

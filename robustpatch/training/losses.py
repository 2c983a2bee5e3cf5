"""The losses of training: cross-entropy of the ablations, and the distance of the votes from a certificate."""

from __future__ import annotations

from functools import singledispatch
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.certificates.randomized import touched_chance
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.defenses import Defended
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import Voting


@runtime_checkable
class Weights(Protocol):
    """The settings of `TrainingConfig` that a loss reads."""

    @property
    def ablations(self) -> int: ...
    @property
    def certificate(self) -> float: ...
    @property
    def clean(self) -> float: ...
    @property
    def cast(self) -> bool: ...
    @property
    def local(self) -> float: ...
    @property
    def bfloat16(self) -> bool: ...


@singledispatch
def objective(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    weights: Weights,
    threat: Threat | None,
    sets: Tensor | None,
    generator: torch.Generator,
    teacher: SmoothedClassifier | None = None,
    done: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of a step, by the kind of classifier: `done` is the share of all steps taken.

    Of an undefended one, cross-entropy; of a defended one, its own. Of one that votes, `local` times the cross-entropy
    of the true class in every ablation drawn for this step (of each class by itself, under a rule that judges each for
    itself), and `certificate` times the certificate's loss, with a patch and, `clean` times, without: so that certified
    accuracy is not bought with clean accuracy. It counts the voting's sharp votes, or with `cast` those cast. `sets`
    are `touched_sets` of the threat.

    With a `teacher`, half of the ablations' cross-entropy is against its scores of the same ablation, as in Hinton et
    al. (2015) at temperature 1: most bands leave several classes possible, and its scores say which.
    """
    with _autocast(x, weights):
        logits = model(x)
    return nn.functional.cross_entropy(logits.float(), y)


@objective.register(Defended)
def _(model: Defended, x, y, weights, threat, sets, generator, teacher=None, done=0.0) -> Tensor:
    with _autocast(x, weights):
        return model.training_loss(x, y, threat, generator, done).float()


@objective.register(RandomizedClassifier)
def _(model: RandomizedClassifier, x, y, weights, threat, sets, generator, teacher=None, done=0.0) -> Tensor:
    with _autocast(x, weights):
        logits = model.sampled_logits(x, weights.ablations or 1, generator).float()
    loss = weights.local * cross_entropy(logits, y)
    if weights.certificate and threat is not None:
        chance = touched_chance(model.ablation, threat, x.shape[2], x.shape[3])
        loss = loss + weights.certificate * majority_loss(logits, y, chance, weights.clean)
    return loss


@objective.register(SmoothedClassifier)
def _(model: SmoothedClassifier, x, y, weights, threat, sets, generator, teacher=None, done=0.0) -> Tensor:
    n = model.ablation.count(*x.shape[2:])
    drawn = weights.ablations or (n if model.one_pass or weights.certificate else 1)
    index = None if drawn >= n else _drawn(model, weights, len(x), n, drawn, generator).to(x.device)
    with _autocast(x, weights):
        logits = model.logits(x, index)
    local = binary_cross_entropy if model.voting.link == "sigmoid" else cross_entropy
    loss = weights.local * local(logits, y)
    if teacher is not None:
        with torch.no_grad(), _autocast(x, weights):
            told = teacher.voting.scores(teacher.logits(x, index)).flatten(0, 1)
        loss = (loss + weights.local * nn.functional.cross_entropy(logits.flatten(0, 1), told)) / 2
    if weights.certificate and sets is not None:
        soft = cast_votes(logits, model.voting) if weights.cast else model.voting.sharp(logits)
        sets = sets if index is None else sets[:, index]  # a sample of the ablations, and of each set with them
        untouched = torch.zeros_like(sets[:1])  # the clean prediction is the certificate against no patch at all
        scale = max(1.0, float(sets.sum(dim=1).max())) / 3  # of the votes that a patch moves
        clean = certificate_loss(soft, y, untouched, scale)
        loss = loss + weights.certificate * (weights.clean * clean + certificate_loss(soft, y, sets, scale))
    return loss


@singledispatch
def trained_part(model: nn.Module) -> nn.Module:
    """The part whose objective is minimised: the smoothed classifier in a defense without an own loss, or the model."""
    return model


@trained_part.register(Defended)
def _(model: Defended) -> nn.Module:
    own = type(model).training_loss is not Defended.training_loss
    votes = voting_classifier(as_classifier(model.network)) is model.network
    return model.network if votes and not own else model


class Loss(nn.Module):
    """`objective` of the model as a module, which is what several processes can share."""

    def __init__(
        self,
        model: nn.Module,
        weights: Weights,
        threat: Threat | None,
        sets: Tensor | None,
        teacher: SmoothedClassifier | None,
    ) -> None:
        super().__init__()
        self.model, self._weights, self._threat, self._sets = model, weights, threat, sets
        self._teacher = [teacher]  # in a list, so that its weights are none of this module's

    def forward(self, x: Tensor, y: Tensor, generator: torch.Generator, done: float) -> Tensor:
        trained = trained_part(self.model)
        return objective(trained, x, y, self._weights, self._threat, self._sets, generator, *self._teacher, done)


def _autocast(x: Tensor, weights: Weights) -> torch.autocast:
    return torch.autocast(x.device.type, torch.bfloat16, enabled=weights.bfloat16)


def _drawn(
    model: SmoothedClassifier, weights: Weights, images: int, n: int, drawn: int, generator: torch.Generator
) -> Int[Tensor, "..."]:
    """Ablations for this step: each image's own [B,drawn], of which batch statistics see every kind; or the same for
    all [drawn], which the certificate's loss needs and the paper has.
    """
    if getattr(model.base, "scores_apart", False) and not weights.certificate:
        return torch.rand(images, n, generator=generator).topk(drawn, dim=1).indices
    return torch.randperm(n, generator=generator)[:drawn]


def cross_entropy(logits: Float[Tensor, "B N K"], y: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """The mean cross-entropy of every ablation, for the image's class."""
    labels = y[:, None].expand(logits.shape[:2])
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def binary_cross_entropy(logits: Float[Tensor, "B N K"], y: Int[Tensor, " B"]) -> Float[Tensor, ""]:
    """The mean binary cross-entropy of every ablation and class: 1 for the image's class, 0 for any other."""
    own = nn.functional.one_hot(y, logits.shape[2])[:, None].expand_as(logits)
    return nn.functional.binary_cross_entropy_with_logits(logits, own.to(logits))


def majority_loss(
    logits: Float[Tensor, "B N K"], y: Int[Tensor, " B"], chance: float, clean: float
) -> Float[Tensor, ""]:
    """About the share of images not certified for y at random ablations, and `clean` times that of images not predicted
    as y: means of sigmoid(-margin / (τ/3)), where τ = `chance` is that of an ablation to be touched.

    With p the shares of the N sampled votes, the margins are p_y - (1/2 + τ), the certificate of Levine & Feizi (2019),
    and p_y - max_j p_j. Votes are those cast, with the gradient of the softmax of twice the logits.
    """
    soft = (2 * logits).softmax(dim=-1)
    cast = nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(soft)
    shares = (cast + soft - soft.detach()).mean(dim=1)
    own = shares.gather(1, y[:, None])[:, 0]
    rival = shares.scatter(1, y[:, None], -1.0).amax(dim=1)
    scale = max(chance, 1e-3) / 3
    certified = torch.sigmoid(-(own - 0.5 - chance) / scale).mean()
    return certified + clean * torch.sigmoid(-(own - rival) / scale).mean()


def cast_votes(logits: Float[Tensor, "B N K"], voting: Voting) -> Float[Tensor, "B N K"]:
    """The votes cast, 0 or 1, with the gradient of the sharp ones (straight through; Metzen & Yatsura 2021).

    A loss that counts soft votes is also lowered by fractions of votes near the threshold, as of ablations that show
    nothing and score alike in every image: votes that are cast there in all images or in none.
    """
    soft = voting.sharp(logits)
    votes = voting.votes(voting.scores(logits.detach()), 0.0)
    cast = votes.cast.to(soft) / votes.unit
    return soft + (cast - soft).detach()


def certificate_loss(
    soft: Float[Tensor, "B N K"], y: Int[Tensor, " B"], sets: Bool[Tensor, "S N"], scale: float
) -> Float[Tensor, ""]:
    """About the share of images that are not certified for y: the mean of sigmoid(-margin / `scale`).

    margin = min over touched sets A and rivals j of s_y - s_y[A] - (s_j - s_j[A]) - |A|: the exact certificate, with
    soft votes s in place of those cast. An image far from certified, or certified by far, has little gradient.
    """
    left = torch.einsum("sn,bnk->bsk", (~sets).to(soft), soft)
    true = y[:, None, None].expand(-1, len(sets), 1)
    rival = left.scatter(2, true, -torch.inf).amax(dim=2)
    margin = left.gather(2, true)[..., 0] - rival - sets.sum(dim=1)
    return torch.sigmoid(-margin.amin(dim=1) / scale).mean()


def touched_sets(ablation: Ablation, threat: Threat, height: int, width: int) -> Bool[Tensor, "S N"]:
    """The sets of ablations that one patch of the threat can touch."""
    touched = [ablation.touched(one, height, width) for one in threat.threats]
    return torch.cat([one.member(torch.arange(len(one.sizes))) for one in touched])

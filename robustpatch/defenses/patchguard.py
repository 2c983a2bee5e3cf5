"""PatchGuard (Xiang et al. 2021): robust masking of what the ablations of a smoothed classifier contribute."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustpatch.certificates.certificate import Certificate, Outcome
from robustpatch.certificates.each_image import certify_each
from robustpatch.certificates.robust_masking import Masking, incidence
from robustpatch.classifiers import checks
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, guarded_classifier, voting_classifier
from robustpatch.defenses.base import Defended, Defense
from robustpatch.errors import InvalidInput
from robustpatch.gradients import StraightThrough
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import as_threat, parse_threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.silence import answered, has_score
from robustpatch.voting.votes import Scored, Votes, first_argmax


@dataclass(frozen=True)
class PatchGuard(Defense):
    """For each class, the window of ablations that speaks loudest for it is not heard, if it is suspicious.

    `window` is the patch ("5x5") that the detector looks for: its windows are the sets of ablations which such a patch
    can touch, those around the border among them. `threshold`, 0 to 1: a window is masked when more than that share of
    all evidence for the class lies in it. At 0 the loudest is masked always; at 1 never, which leaves plain smoothing
    and its exact certificate.

    The evidence is what the smoothed classifier inside counts, votes or the scores of `robustpatch.voting.scored`: by
    the rule `voting`, or by the classifier's own where that is "own". With columns and "scores" this is masked
    derandomized smoothing; with blocks and "relu", local logits clipped at 0 of a network with small receptive fields,
    it is PatchGuard on a BagNet. (Xiang et al. 2021, Sections 3.3 and 3.4.)
    """

    name: ClassVar[str] = "patchguard"
    window: str = "5x5"
    threshold: float = 0.0
    voting: str = "own"

    def __post_init__(self) -> None:
        if self.voting != "own":
            parse_voting(self.voting)
        if not 0 <= self.threshold <= 1:
            raise InvalidInput(f"threshold is {self.threshold}, a share of the evidence; it must lie in [0, 1]")

    def wrap(self, network: nn.Module, *, num_classes: int) -> WindowClassifier:
        return MaskedClassifier(network, self, num_classes=num_classes)


class WindowClassifier(Defended, CertifiedClassifier):
    """`network`, a smoothed classifier, judged by what the windows of a detector hold; trained as that one is.

    `predict` and `certify` are of whole units (see `Masking`): exact, and sound as long as no score of an untouched
    ablation moves by more than the guard of the smoothed classifier.
    """

    network: SmoothedClassifier
    defense: PatchGuard
    outcome: ClassVar[Outcome] = "recovers"

    def __init__(self, network: nn.Module, defense: PatchGuard, *, num_classes: int) -> None:
        super().__init__(network, defense, num_classes=num_classes)
        inside = voting_classifier(as_classifier(network))
        if inside is None or inside is not network:
            raise InvalidInput(
                f"network is a {type(network).__name__}, but PatchGuard masks what ablations say; put it around a "
                "SmoothedClassifier (in a configuration: name an ablation too)"
            )
        if defense.voting != "own":
            voting = parse_voting(defense.voting, inside.voting.guard)
            self.network = SmoothedClassifier(inside.base, inside.ablation, voting=voting, **inside.options())
            self.network.train(network.training)

    def with_base(self, base: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> WindowClassifier:
        """The same defense around another base, in evaluation mode."""
        options = {**self.network.options(), "num_classes": num_classes, "voting": self.network.voting}
        inner = SmoothedClassifier(base, self.network.ablation, **options)
        return type(self)(inner, self.defense, num_classes=num_classes).eval()

    @property
    def guard(self) -> float:
        """Of the smoothed classifier inside."""
        return self.network.guard

    def masking(self, height: int, width: int) -> Masking:
        """The windows on images of this size."""
        (window, *others) = parse_threat(self.defense.window, (height, width), files=False).threats
        if others or window.count > 1:
            raise InvalidInput(f"window is {self.defense.window}; the detector looks for one rectangle, such as 5x5")
        windows = incidence(self.network.ablation, window, (height, width))
        return Masking(windows, Fraction(self.defense.threshold).limit_denominator(2**16))

    def sets_of(self, threat: Threat, height: int, width: int) -> list[Tensor]:
        """For each part of the threat the sets of ablations that one patch can touch. Raises `InvalidInput` where no
        window holds some set, and for several patches.
        """
        masking, sets = self.masking(height, width), []
        for one in threat.threats:
            one.check_fits(height, width)
            if one.count > 1:
                raise InvalidInput(f"threat is {one}, but robust masking masks one window; certify single patches")
            sets.append(incidence(self.network.ablation, one, (height, width)))
            if not masking.covers(sets[-1]):
                heights, widths = zip(*(each.family(height, width).extent for each in threat.threats), strict=True)
                large = PatchThreat(max(heights), max(widths))
                raise InvalidInput(
                    f"threat is {one}, which can touch more than any window of {self.defense} masks; defend with "
                    f"{self.defense.name}:window={large}, or certify smaller patches"
                )
        return sets

    @abstractmethod
    def answer_of(self, masking: Masking, cast: Tensor) -> Int[Tensor, " B"]:
        """The answer to images whose ablations contribute `cast` [B,N,K]."""

    @abstractmethod
    def margins_of(
        self, masking: Masking, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S"]:
        """The least lead of each clean answer over what a patch that touches each set can make of it, in units."""

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The answer to each image; -1 where not one of its ablations has a score. Raises `InvalidInput`.

        An ablation with a score that is no number contributes nothing, which `margins_of` allows a patch on those that
        it touches.
        """
        checks.inputs(self, x)
        scores, model = self.network.scores(x), self.network
        votes = model.voting.votes(scores, model.guard_on(x.device))
        return answered(self.answer_of(self.masking(*x.shape[2:]), votes.cast), scores)

    @torch.no_grad()
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """Prove, for each image, that no patch within `threat` changes `predict`, or, of a classifier that alerts, that
        under each the answer stays or is an alert.

        Raises `InvalidInput` where some patch of the threat can touch ablations that no window of the detector holds
        together, and for several patches.
        """
        checks.inputs(self, x)
        threat = as_threat(threat, x.shape[2:])
        if threat.varies:
            return certify_each(self.certify, x, threat)
        size, model = (x.shape[2], x.shape[3]), self.network
        masking, sets = self.masking(*size), self.sets_of(threat, *size)
        votes = model.voting.votes(model.certifiable_scores(x), model.guard_on(x.device))
        prediction, maps = self.answer_of(masking, votes.cast), []
        for one, touched in zip(threat.threats, sets, strict=True):
            of_placement = model.ablation.touched(one, *size).set_of_placement.to(prediction.device)
            maps.append(self.margins_of(masking, votes, prediction, touched)[:, of_placement])
        placement_margin = torch.cat(maps, dim=1)
        margin = placement_margin.amin(dim=1)
        return Certificate(
            prediction=prediction,
            certified=margin >= 0,
            margin=margin,
            placement_margin=placement_margin,
            threat=threat,
            method="exact",
            guard=model.guard_on(prediction.device),
            close=votes.close.sum(dim=(1, 2)),
            unit=votes.unit,
            outcome=self.outcome,
        )


@guarded_classifier.register
def _(classifier: WindowClassifier) -> SmoothedClassifier:
    return classifier.network


class MaskedClassifier(WindowClassifier):
    """A smoothed classifier by robust masking: of each class the loudest window is not heard, if it is suspicious."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns what masking leaves of each class less what it leaves of the best, per ablation: 0 for the best,
        below for others.

        Its argmax is `predict`, unless that is -1; its gradient that of the soft votes, or scores, not masked.
        """
        logits, voting = self.network.logits(x), self.network.voting
        scores = voting.scores(logits.detach())
        votes = voting.votes(scores, self.network.guard_on(x.device))
        heard, left = self.masking(x.shape[2], x.shape[3]).remainder(votes.cast)
        scale = votes.cast.shape[1] * votes.unit
        hard = ((left - left.amax(dim=1, keepdim=True)).double() / scale).float()
        if not logits.requires_grad:
            return hard
        known = has_score(scores)
        soft = torch.where(known & heard, voting.soft(torch.where(known, logits, 0)), 0).sum(dim=1) / heard.shape[1]
        return StraightThrough.apply(soft, hard)  # type: ignore[no-any-return]

    def counts(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, "B K"]:
        return self.left(self.network.votes(x.clone()), (x.shape[2], x.shape[3]))

    def left(self, votes: Votes | Scored, image_size: tuple[int, int]) -> Int[Tensor, "B K"]:
        """Returns what masking leaves of each class, of the contributions of the ablations of such images."""
        return self.masking(*image_size).remainder(votes.cast)[1]

    def answer_of(self, masking: Masking, cast: Tensor) -> Int[Tensor, " B"]:
        """The class with most left after masking, the lowest index among equals."""
        return first_argmax(masking.remainder(cast)[1])

    def margins_of(
        self, masking: Masking, votes: Votes | Scored, prediction: Int[Tensor, " B"], sets: Bool[Tensor, "S N"]
    ) -> Int[Tensor, "B S"]:
        found = masking.margins(votes, prediction, sets)
        # A patch that touches all ablations can silence them all: `predict` is -1, of which no margin knows.
        return torch.where(sets.all(dim=1).to(found.device), found.clamp(max=-1), found)

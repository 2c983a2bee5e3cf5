"""The certificate of a batch of images: a value that says what was proved of each, against what, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.certificates.listed import claimed
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.threats.base import Threat
from robustpatch.threats.growing import Growing, squares
from robustpatch.voting.votes import Scored, Votes

Method = Literal["exact", "margin"]
NO_PLACE = 2**62  # among the margins of placements: this image has no such placement
Outcome = Literal["recovers", "recovers or alerts"]


class Evidence(ABC):
    """The votes that a certificate was computed from: enough for a stranger to check it, and to certify again."""

    votes: Votes | Scored
    ablation: Ablation
    image_size: tuple[int, int]

    @abstractmethod
    def certify(self, threat: Threat, *, method: Method = "exact", guard: float = 0.0) -> Certificate:
        """The certificate that these votes give against a threat, by a method."""

    @abstractmethod
    def largest_certified(self, method: Method = "exact", growing: Growing = squares) -> Int[Tensor, " B"]:
        """The size of the largest of growing patches that these votes certify each image against."""


@dataclass(frozen=True)
class Certificate:
    """For every image i with `certified[i]`, no patch within `threat` changes the prediction from `prediction[i]`; with
    the `outcome` "recovers or alerts", from that to anything but an alert (-1).

    This holds for every content and placement, provided that no score of an untouched ablation moves by more than
    `guard` between two evaluations. Where `confidence` is a number, each image's claim holds with that probability over
    the samples drawn for it, and is about the ideal smoothed classifier (see `robustpatch.certificates.randomized`).

    Attributes:
        prediction: Int[B], the class with the most votes (lowest index on ties); -1 where a defense abstains.
        certified: Bool[B].
        margin: Int[B], the worst case over placements and rivals; certified iff ≥ 0. Randomized: Float[B], the bound on
            the prediction's share less 1/2 + τ; certified iff > 0. Bounds: Float[B], below the lead in outputs;
            certified iff ≥ 0. None where a defense has no such number.
        placement_margin: Int[B,L], the same for each placement in row-major order (`AnyOf`: one threat after the
            other); None for the margin method and for several patches. Where the threat depends on the image, of all
            its places on any image: `NO_PLACE` at those that this one has not.
        threat, method: what is certified, and how ("exact", "margin", "randomized" or, of outputs, "bounds").
        guard: the assumed bound on changes of scores. close: Int[B], how many votes lie that near to turning over.
        confidence: None for these deterministic proofs; 1 - α for randomized ones.
        evidence: votes and geometry, for `save` and `largest_certified`; None where samples are all there is.
        outcome: what holds under every patch.
        unit: what margins are counted in: 1/unit of the most that one ablation can add to a count. 1 for votes.
    """

    prediction: Int[Tensor, " B"]
    certified: Bool[Tensor, " B"]
    margin: Int[Tensor, " B"] | Float[Tensor, " B"] | None
    placement_margin: Int[Tensor, "B L"] | None
    threat: Threat
    method: Method | Literal["randomized", "bounds"]
    guard: float
    close: Int[Tensor, " B"]
    confidence: float | None = None
    evidence: Evidence | None = field(default=None, repr=False)
    unit: int = 1
    outcome: Outcome = "recovers"

    def by(self, method: Method) -> Certificate:
        """The certificate that the same votes give by another method. Raises `InvalidInput` where there are none."""
        return self._votes().certify(self.threat, method=method, guard=self.guard)

    def largest_certified(self, growing: Growing = squares) -> Int[Tensor, " B"]:
        """The side of the largest square patch that the same votes certify each image against; 0 where there is none.
        With `growing`, the size of another shape; see `robustpatch.certificates.largest`. Raises `InvalidInput` where
        there are no votes.
        """
        return self._votes().largest_certified(growing=growing)

    def save(self, path: str | Path) -> None:
        """Write votes (bit-packed; of summed scores the units), close votes, geometry, threat and claim;
        `robustpatch.proof` verifies the file. A threat that is no rectangle is written pixel by pixel, without its
        name. Raises `InvalidInput` where there are no votes or no images, and where the patches have more places or
        unions, or the threat more alternatives, than the verifier reads.
        """
        evidence = self._votes()
        if self.threat.varies:
            raise InvalidInput(
                f"threat is {self.threat}, which has other places on every image, and a proof file holds one list of "
                "them; save image by image: certify(x[i:i+1], threat.of_image(x[i])).save(path)"
            )
        if len(self.prediction) == 0:
            raise InvalidInput("this certificate is of 0 images, which proves nothing; certify at least one to save it")
        votes = evidence.votes
        threats, listed = claimed(self.threat, evidence.ablation, evidence.image_size)
        assert self.margin is not None  # where there are votes
        try:
            proof.write(
                path,
                cast=votes.cast.cpu().numpy(),
                close=votes.close.cpu().numpy(),
                unit=votes.unit,
                slack=votes.slack,
                ablation=str(evidence.ablation),
                image_size=evidence.image_size,
                threats=threats,
                prediction=self.prediction.cpu().numpy(),
                certified=self.certified.cpu().numpy(),
                margin=self.margin.cpu().numpy(),
                method=self.method,
                guard=self.guard,
                listed=listed,
            )
        except ValueError as error:
            raise InvalidInput(f"no proof of this certificate could be checked: {error}; name fewer threats") from error

    def _votes(self) -> Evidence:
        if self.evidence is None:
            remedy = "a smoothed classifier's has, so certify again with one; other defenses have none to keep"
            if self.confidence is not None:
                remedy = "a randomized one is of samples that nobody keeps, so repeat it with the same seed"
            raise InvalidInput(f"this certificate carries no votes (evidence is None); {remedy}")
        return self.evidence

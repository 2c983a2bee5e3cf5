"""votes + geometry -> Certificate: integer arithmetic, no network.

n_k are the votes for class k, n_k[A] those cast by the ablations in A, c is the prediction: the class with the most
votes, the lowest index winning ties. A patch controls the votes of the set A that its placement touches and no others:
there it can withdraw every vote for c and cast one for a rival j. Of scores that are summed, n_k counts units of 2^-16
of a contribution's range, and one touched ablation can take away and give that whole range.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.touched import Touched
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.votes import Scored, Votes, first_argmax

Method = Literal["exact", "margin"]
_CACHED = 2**19  # int32 cells worked on at once on a CPU: what its cache holds
_CELLS = 2**24  # and on a GPU: some hundred MiB of working memory
FAR = {kind: torch.iinfo(kind).max // 2 for kind in (torch.int32, torch.int64)}  # beyond all leads, and can be added to


@dataclass(frozen=True)
class Evidence:
    """What a certificate was computed from; enough for a stranger to check it."""

    votes: Votes | Scored
    ablation: Ablation
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Certificate:
    """For every image i with `certified[i]`, no patch within `threat` changes the prediction from `prediction[i]`.

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
            other); None for the margin method and for several patches.
        threat, method: what is certified, and how ("exact", "margin", "randomized" or, of outputs, "bounds").
        guard: the assumed bound on changes of scores. close: Int[B], how many votes lie that near to turning over.
        confidence: None for these deterministic proofs; 1 - α for randomized ones.
        evidence: votes and geometry, for `save` and `largest_certified`; None where samples are all there is.
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

    def by(self, method: Method) -> Certificate:
        """The certificate that the same votes give by another method."""
        evidence = self._votes()
        return certify_votes(
            evidence.votes, evidence.ablation, self.threat, evidence.image_size, method=method, guard=self.guard
        )

    def largest_certified(self) -> Int[Tensor, " B"]:
        """The side of the largest square patch that the same votes certify each image against; see the function."""
        evidence = self._votes()
        return largest_certified(evidence.votes, evidence.ablation, evidence.image_size)

    def _votes(self) -> Evidence:
        if self.evidence is None:
            remedy = "a smoothed classifier's has, so certify again with one; other defenses have none to keep"
            if self.confidence is not None:
                remedy = "a randomized one is of samples that nobody keeps, so repeat it with the same seed"
            raise InvalidInput(f"this certificate carries no votes (evidence is None); {remedy}")
        return self.evidence

    def save(self, path: str | Path) -> None:
        """Write votes (bit-packed; of summed scores the units), close votes, geometry, threat and claim;
        `robustpatch.proof` verifies the file. Raises `InvalidInput` where there are no votes or no images.
        """
        evidence = self._votes()
        if len(self.prediction) == 0:
            raise InvalidInput("this certificate is of 0 images, which proves nothing; certify at least one to save it")
        votes = evidence.votes
        assert self.margin is not None  # where there are votes
        proof.write(
            path,
            cast=votes.cast.cpu().numpy(),
            close=votes.close.cpu().numpy(),
            unit=votes.unit,
            slack=votes.slack if isinstance(votes, Scored) else 0,
            ablation=str(evidence.ablation),
            image_size=evidence.image_size,
            threats=[_saved(one, evidence.image_size) for one in self.threat.threats],
            prediction=self.prediction.cpu().numpy(),
            certified=self.certified.cpu().numpy(),
            margin=self.margin.cpu().numpy(),
            method=self.method,
            guard=self.guard,
        )


def _saved(threat: Patches, image_size: tuple[int, int]) -> tuple[int, int, int]:
    """Height, width and count, the form of rectangles in a proof file. Raises `InvalidInput` for another shape."""
    rectangle = threat.families(*image_size)[0].rectangle
    if rectangle is None:
        raise InvalidInput(f"threat is {threat}, and proof files hold rectangles only; certify a rectangle to save it")
    return *rectangle, threat.count


def certify_votes(
    votes: Votes | Scored,
    ablation: Ablation,
    threat: Threat,
    image_size: tuple[int, int],
    *,
    method: Method = "exact",
    guard: float = 0.0,
) -> Certificate:
    """Certify the predictions of B images from their votes [B,N,K] alone.

    - "exact": certified iff for every placement, with touched set A, and every rival j ≠ c:
      n_c - n_c[A] ≥ n_j - n_j[A] + |A| + [j < c]. Never weaker than "margin", and tight without close votes.
    - "margin": certified iff for every j ≠ c: n_c - n_j ≥ 2Δ + [j < c], Δ the largest |A| (Levine & Feizi 2020,
      Algorithms 1 and 2).

    A close vote counts as absent for c and as present for j. Summed scores (`Scored`) have n_k in units and u·|A| in
    place of |A| (2uΔ of 2Δ), u units being the range of a contribution; each counts u·guard units less for c, and as
    many more for j, within its range. Several patches (`threat.count` > 1) cost at most the sum
    of their damages, n_c[A] - n_j[A] + |A| each; for columns and rows their exact worst union is found.
    """
    _check_method(method)
    check_votes(votes, ablation, image_size, guard)
    prediction = first_argmax(votes.counts)
    margins, maps = [], []
    for one in threat.threats:
        one.check_fits(*image_size)
        if method == "margin":
            margins.append(_paper_margin(votes, prediction, ablation.affected(one, *image_size)))
            continue
        touched = ablation.touched(one, *image_size)
        worst = _exact_margins(votes, prediction, touched, one.count)
        margins.append(worst.amin(dim=1))
        maps.append(worst[:, touched.set_of_placement.to(worst.device)] if one.count == 1 else None)
    margin = torch.stack(margins).amin(dim=0)
    known = [m for m in maps if m is not None]
    return Certificate(
        prediction=prediction,
        certified=margin >= 0,
        margin=margin,
        placement_margin=torch.cat(known, dim=1) if known and len(known) == len(threat.threats) else None,
        threat=threat,
        method=method,
        guard=guard,
        close=votes.close.sum(dim=(1, 2)),
        evidence=Evidence(votes, ablation, image_size),
        unit=votes.unit,
    )


def largest_certified(
    votes: Votes | Scored, ablation: Ablation, image_size: tuple[int, int], method: Method = "exact"
) -> Int[Tensor, " B"]:
    """The side of the largest square patch against which `method` certifies each image; 0 where there is none.

    A smaller square touches no more at any placement, so the certified sides are exactly 1, …, the one returned. The
    paper's margin needs the counts alone and implies the exact certificate, which is therefore tried from there on,
    side by side, each on the images that have come so far. Raises `InvalidInput`.
    """
    _check_method(method)
    check_votes(votes, ablation, image_size)
    prediction = first_argmax(votes.counts)
    lead = _paper_margin(votes, prediction, 0)
    side = torch.zeros_like(prediction)
    sides = range(1, min(image_size) + 1)
    for m in sides:
        certified = lead >= 2 * votes.unit * int(_square(ablation, m, image_size).sizes.max())
        if not bool(certified.any()):
            break
        side[certified] = m
    for m in sides if method == "exact" else ():
        if not bool((side >= m - 1).any()):
            break
        tried = (side == m - 1).nonzero()[:, 0]
        margins = _exact_margins(votes.of(tried), prediction[tried], _square(ablation, m, image_size), 1)
        side[tried[margins.amin(dim=1) >= 0]] = m
    return side


@lru_cache(maxsize=64)
def _square(ablation: Ablation, side: int, image_size: tuple[int, int]) -> Touched:
    """What a square touches: read off masks, that can take longer than the certificates of a batch."""
    return ablation.touched(PatchThreat(side, side), *image_size)


def _check_method(method: str) -> None:
    if method not in ("exact", "margin"):
        raise InvalidInput(f'method is {method!r}; use "exact" or "margin"')


def check_votes(votes: Votes | Scored, ablation: Ablation, image_size: tuple[int, int], guard: float = 0.0) -> None:
    """Refuse votes that are not those of every ablation of such an image, for two classes or more; and summed scores
    that were counted with less slack than the guard's.
    """
    n, cast = ablation.count(*image_size), votes.cast
    if cast.shape != votes.close.shape or cast.ndim != 3 or cast.shape[1] != n or cast.shape[2] < 2:
        raise InvalidInput(
            f"votes have shapes {tuple(cast.shape)} (cast) and {tuple(votes.close.shape)} (close); {ablation} on "
            f"{image_size[0]}x{image_size[1]} needs [B, {n}, K] twice, with at least two classes"
        )
    if isinstance(votes, Scored) and votes.slack < guard * votes.unit:
        raise InvalidInput(
            f"guard is {guard}, but the scores were counted with a slack of {votes.slack} units of 1/{votes.unit}; "
            "count them with that guard"
        )


def _paper_margin(votes: Votes | Scored, prediction: Tensor, affected: int) -> Int[Tensor, " B"]:
    """min over j ≠ c of n_c - n_j - 2uΔ - [j < c], close votes against c."""
    c = prediction[:, None]
    own = c[:, None].expand(-1, votes.cast.shape[1], 1)
    sure = votes.sure.gather(2, own).sum(dim=1)
    possible = votes.possible.sum(dim=1)
    rival = torch.arange(possible.shape[1], device=c.device)
    margins = sure - possible - 2 * votes.unit * affected - (rival < c).long()
    return margins.masked_fill(rival == c, torch.iinfo(torch.int64).max).amin(dim=1)


def _exact_margins(votes: Votes | Scored, prediction: Tensor, touched: Touched, count: int) -> Int[Tensor, "B S"]:
    """min over j ≠ c of n_c - n_j - [j < c] - damage, for each touched set; [B,1] for the worst union of `count`.

    The damage of a set A, Σ over A of v_c - v_j + u, is what withdrawing the votes for c and casting votes for j gains.
    """
    sets = len(touched.sizes) if count == 1 else 1
    out = torch.full((len(prediction), sets), torch.iinfo(torch.int64).max, device=prediction.device)
    for rows, margins in leads(votes, prediction, touched, count, votes.unit):
        out[rows] = torch.minimum(out[rows], margins.amin(dim=2))
    return out


def leads(
    votes: Votes | Scored, c: Int[Tensor, " B"], touched: Touched, count: int, raised: int, k: int = 1
) -> Iterator[tuple[slice, Int[Tensor, "b S J"]]]:
    """n_c - n_j - [j < c] - Σ over A of (v_c - v_j + raised) for some images and rivals j after the other, with `rows`.

    For each touched set A; of the worst union of `count` sets, [b,1,J], at most that for any. Close votes count against
    c. `raised` is what each touched ablation gives j: the unit, or nothing. Together the rivals hold the k least of
    each image and set. For j = c, and beyond, a number that no lead comes near.
    """
    cells = max(touched.num_ablations, len(touched.sizes) ** (2 if count > 1 and touched.exact_unions else 1))
    kind = _kind(votes)
    budget = _CACHED if c.device.type == "cpu" else _CELLS
    images = max(1, budget // (cells * votes.cast.shape[2]))
    for first in range(0, len(c), images):
        rows = slice(first, first + images)
        some = votes.of(rows)
        sure, possible = some.sure, some.possible
        own = sure.gather(2, c[rows, None, None].expand(-1, sure.shape[1], 1)).to(kind)
        for rivals in _rivals(possible, k).split(max(1, budget // (cells * images))):
            j = possible.index_select(2, rivals).to(kind)
            damage = own - j + raised
            lost = touched.sums(damage) if count == 1 else touched.worst_union(damage.clamp(min=0), count)[:, None]
            before = (own - j).sum(dim=1, dtype=kind) - (rivals < c[rows, None]).to(kind)
            before = before.masked_fill(rivals == c[rows, None], FAR[kind])  # no rival of itself
            yield rows, before[:, None] - lost


def rival_margins(votes: Votes | Scored, prediction: Int[Tensor, " B"], touched: Touched) -> Int[Tensor, "B S K"]:
    """n_c - n_c[A] - (n_j - n_j[A] + u·|A| + [j < c]) for every touched set A and rival j; c is `prediction`, u = 1
    for votes.

    Close votes count against c. This is the exact certificate's margin before the least of it is taken: below zero
    where the attacker may have it in his power to raise j above c. For j = c itself the largest int64. Memory
    O(B·N·K + B·S·K).
    """
    c = prediction[:, None, None]
    sure = votes.sure.gather(2, c.expand(-1, votes.cast.shape[1], 1)).to(_kind(votes))
    damage = sure - votes.possible.to(_kind(votes)) + votes.unit
    rival = torch.arange(damage.shape[2], device=damage.device)
    lead = (damage - votes.unit).sum(dim=1, keepdim=True) - (rival < c).long()
    return (lead - touched.sums(damage)).masked_fill(rival == c, torch.iinfo(torch.int64).max)


def _kind(votes: Votes | Scored) -> torch.dtype:
    """What holds sums over all ablations: int32 of votes, int64 of units."""
    return torch.int64 if isinstance(votes, Scored) else torch.int32


def _rivals(possible: Tensor, k: int) -> Int[Tensor, " J"]:
    """The classes among which the k worst are: those with a vote in some image, and the k + 1 lowest without.

    All classes without a vote cost c the same but for ties, so the lowest k stand for them, or the next for c itself.
    """
    voted = (possible != 0).flatten(0, 1).any(dim=0)
    return torch.cat([voted.nonzero()[:, 0], (~voted).nonzero()[: k + 1, 0]])

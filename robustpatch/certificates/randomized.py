"""Randomized smoothing: the vote estimated from sampled ablations, and certificates that hold with a chosen confidence.

p_k is the chance that a random ablation votes for class k, and the ideal smoothed classifier predicts the class of
largest p_k. A patch reaches a random ablation with a chance of at most τ, so it moves no p_k by more than τ: where
p_c > 1/2 + τ, the ideal prediction is c whatever the patch (Levine & Feizi 2019, 2020; Cohen et al. 2019). Ablations
that it brings to vote for no class leave c more than half of all the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import betaincinv
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.certificates.certificate import Certificate
from robustpatch.certificates.margins import check_votes
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import Votes, first_argmax

_ROUNDING = 1e-9  # by which p_low must clear 1/2 + τ: both are computed to about 1e-13


@dataclass(frozen=True)
class Sampling:
    """The numbers of random ablations that are asked, and the chances of a wrong answer. Raises `InvalidInput`.

    Args:
        selection: ablations of an image that choose the class. estimation: others, that bound its share from below.
        prediction: ablations that `predict` asks.
        alpha: the chance that a certificate is wrong. alpha_prediction: the chance that `predict`, where it does not
            abstain, is not what the ideal smoothed classifier says. Either is for one image, over the samples.
        seed: what is drawn for an image depends on this, the image and the purpose; on no other image.
    """

    selection: int = 1_000
    estimation: int = 10_000
    prediction: int = 1_000
    alpha: float = 0.05
    alpha_prediction: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("selection", "estimation", "prediction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInput(f"{name} is {value!r}; it must be a whole number of samples, at least 1")
        for name in ("alpha", "alpha_prediction"):
            if not 0 < getattr(self, name) < 1:
                raise InvalidInput(
                    f"{name} is {getattr(self, name)}; it is the chance of an error, strictly between 0 and 1: "
                    "take 0.05 for 95% confidence"
                )


@dataclass(frozen=True)
class Tally:
    """Counts over the ablations drawn for each image: votes cast, votes cast that are not close, and close votes."""

    cast: Int[Tensor, "B K"]
    lower: Int[Tensor, "B K"]
    close: Int[Tensor, " B"]


Draw = Callable[[str, int], Tally]  # for a purpose, so many random ablations of each image: independent by purpose


def certify_randomized(
    votes: Votes,
    ablation: Ablation,
    threat: Threat,
    image_size: tuple[int, int],
    *,
    sampling: Sampling = Sampling(),
    keys: Sequence[bytes] | None = None,
    guard: float = 0.0,
) -> Certificate:
    """Certify B images as if their ablations had been sampled, from the top-1 votes [B,N,K] of all of them.

    `selection` ablations, drawn with replacement, choose the class c; of `estimation` others, those that vote for c and
    are not close give p_low, the one-sided Clopper-Pearson bound of p_c at 1 - alpha. Certified iff
    p_low > 1/2 + τ; `margin` is the difference. The certificate abstains (-1) where p_low ≤ 1/2.

    `keys` tell the images apart, each its own samples; without them, their number in the batch does. Raises
    `InvalidInput`. (Levine & Feizi 2020, "randomized"; Cohen et al. 2019, Section 3.2.2.)
    """
    check_votes(votes, ablation, image_size)
    threat.check_fits(*image_size)
    draw = from_votes(votes, _numbers(len(votes.cast)) if keys is None else keys, sampling.seed)
    return certify_draws(draw, touched_chance(ablation, threat, *image_size), threat, sampling, guard)


def predict_randomized(
    votes: Votes, *, sampling: Sampling = Sampling(), keys: Sequence[bytes] | None = None
) -> Int[Tensor, " B"]:
    """`RandomizedClassifier.predict` from the votes of all ablations; `keys` as for `certify_randomized`."""
    draw = from_votes(votes, _numbers(len(votes.cast)) if keys is None else keys, sampling.seed)
    return predict_draws(draw, sampling)


def touched_chance(ablation: Ablation | SparseAblation, threat: Threat, height: int, width: int) -> float:
    """τ: the largest chance, over placements and members of the threat, that a random ablation keeps a pixel under the
    patch. Δ/N where the ablations are enumerable.
    """
    if isinstance(ablation, SparseAblation):
        return ablation.touched_chance(threat, height, width)
    most = max(ablation.affected(one, height, width) for one in threat.threats)
    return most / ablation.count(height, width)


def lower_bound(hits: Int[Tensor, " B"], number: int, alpha: float) -> Float[Tensor, " B"]:
    """The one-sided Clopper-Pearson bound, float64: the p with P(Bin(number, p) ≥ hits) = alpha, and 0 for no hits.

    Whatever the true p, the bound of a binomial count exceeds it with probability at most alpha.
    """
    k = hits.cpu().numpy().astype(np.float64)
    low = np.where(k > 0, betaincinv(np.maximum(k, 1), number - k + 1, alpha), 0.0)
    return torch.from_numpy(low).to(hits.device)


def _numbers(count: int) -> list[bytes]:
    return [i.to_bytes(8, "big") for i in range(count)]


def certify_draws(draw: Draw, chance: float, threat: Threat, sampling: Sampling, guard: float) -> Certificate:
    selected = draw("selection", sampling.selection).cast
    prediction = first_argmax(selected)
    tally = draw("estimation", sampling.estimation)
    hits = tally.lower.gather(1, prediction[:, None])[:, 0]
    low = lower_bound(hits, sampling.estimation, sampling.alpha)
    margin = low - (0.5 + chance) - _ROUNDING
    return Certificate(
        prediction=torch.where(low > 0.5, prediction, -1),
        certified=margin > 0,
        margin=margin,
        placement_margin=None,
        threat=threat,
        method="randomized",
        guard=guard,
        close=tally.close,
        confidence=1 - sampling.alpha,
    )


def predict_draws(draw: Draw, sampling: Sampling) -> Int[Tensor, " B"]:
    from scipy.stats import binom  # slow to import

    counts = draw("prediction", sampling.prediction).cast
    (first, second), best = counts.topk(2, dim=1).values.unbind(dim=1), first_argmax(counts)
    # Two-sided at one half, where the distribution is symmetric.
    chance = 2 * binom.sf((first - 1).cpu().numpy(), (first + second).cpu().numpy(), 0.5)
    return torch.where(torch.from_numpy(chance).to(best.device) <= sampling.alpha_prediction, best, -1)


def from_votes(votes: Votes, keys: Sequence[bytes], seed: int) -> Draw:
    """Ablations drawn with replacement from all of them, whose votes are known."""
    if len(keys) != len(votes.cast):
        raise InvalidInput(f"keys are {len(keys)}, but votes are of {len(votes.cast)} images; give one for each")
    cast = votes.cast.sum(dim=2)
    if bool((cast > 1).any() | ((cast == 0) & ~votes.close.all(dim=2)).any()):  # of those without a score all is close
        raise InvalidInput(
            "votes are not top-1: some ablation votes for no class or for several; a randomized certificate is of "
            "top-1 votes, so take those of TopOne()"
        )
    device, (images, n, _) = votes.cast.device, votes.cast.shape

    def draw(purpose: str, number: int) -> Tally:
        times = np.zeros((images, n), dtype=np.int32)
        for i, key in enumerate(keys):
            drawn = np.random.default_rng(stream_seed(seed, purpose, key)).integers(n, size=number)
            times[i] = np.bincount(drawn, minlength=n)
        weight = torch.from_numpy(times).to(device)[..., None]
        parts = (votes.cast, votes.cast & ~votes.close, votes.close)
        cast, lower, close = ((weight * part).sum(dim=1) for part in parts)
        return Tally(cast, lower, close.sum(dim=1))

    return draw


def stream_seed(*parts: int | str | bytes) -> int:
    """A seed for each sequence of parts, as good as independent of every other's."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return int.from_bytes(digest.digest()[:8], "big") >> 1

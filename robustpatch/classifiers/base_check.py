"""The check of what the proofs assume of a base network, and the memory of which states of it have passed."""

from __future__ import annotations

from math import gcd
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch import precision
from robustpatch.ablations.base import Ablation
from robustpatch.classifiers.state_digest import digest
from robustpatch.errors import InvalidInput
from robustpatch.voting.silence import has_score

ABLATIONS = 256  # that a full check looks at, on four images together
_EACH = ABLATIONS // 4
_CALLS = 64  # after so many calls that certify, each ablation has been looked at
_KEPT = 8  # states that are remembered

State = tuple[object, ...]  # see `scoring_state`


@runtime_checkable
class Scoring(Protocol):
    """The part of a `SmoothedClassifier` that is checked: the scores that it gives of each ablation."""

    ablation: Ablation

    @property
    def one_pass(self) -> bool: ...

    @property
    def by_pairs(self) -> bool: ...

    def guard_on(self, device: torch.device | str | None) -> float: ...

    def scores(
        self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B n K"]: ...


def check_when(check: str) -> None:
    """Refuse any word but "once" and "every call" with `InvalidInput`."""
    if check not in ("once", "every call"):
        raise InvalidInput(f'check is {check!r}; use "once" (and a few ablations at each call) or "every call"')


class PassedChecks:
    """The last few states of a classifier in which its base passed the check. A copy, pickled or not, starts anew."""

    def __init__(self) -> None:
        self._states: list[State] = []
        self._next: dict[int, int] = {}
        self.calls = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return PassedChecks, ()

    def __contains__(self, state: State) -> bool:
        return state in self._states

    def add(self, state: State) -> None:
        if state not in self:
            self._states = [state, *self._states][:_KEPT]

    def turn(self, total: int, number: int) -> int:
        """The place among `total` ablations where the last call stopped; this one takes `number` from there on."""
        first = self._next.get(total, 0)
        self._next[total] = (first + number) % total
        return first


def scoring_state(model: nn.Module, x: Tensor, guard: float) -> State:
    """All that decides how the model scores such images: what it holds, their shape and device, precision, guard."""
    settings = precision.settings(x.device.type)
    return digest(model, ("passed",)), tuple(x.shape[1:]), x.dtype, str(x.device), settings, guard


def few(total: int) -> int:
    """The number of ablations that a call looks at where the base has passed the full check before."""
    return -(-total // _CALLS)


def spread(total: int, first: int, number: int, device: torch.device | str = "cpu") -> Tensor:
    """`number` of the `total` ablations from place `first` on in an order that spreads them evenly: every step is about
    the golden section of the whole, and `total` steps visit each once.
    """
    step = next(s for s in range(max(1, round(0.618 * total)), 2 * total + 1) if gcd(s, total) == 1)
    return torch.arange(first, first + min(number, total), device=device) * step % total


def base_is_sound(
    model: Scoring,
    x: Float[Tensor, "B C H W"],
    *,
    first: int = 0,
    again: bool = False,
    scores: Float[Tensor, "B N K"] | None = None,
) -> float:
    """Refuse a base whose scores depend on other images, on chance or, scored in one pass, on pixels it must not see.

    The first image, black, white and noise, 64 ablations each, from place `first` on in the order of `spread`: it finds
    gross violations and does not prove that there are none. `again`: the next `few` on the first image alone, held
    against its `scores` where they are known. Returns the largest change of a score seen.
    """
    n = model.ablation.count(*x.shape[2:])
    if again:
        return _check_few(model, x[:1], spread(n, first, few(n), x.device), scores)
    tested = torch.cat([x[:1], torch.zeros_like(x[:1]), torch.ones_like(x[:1]), noise(x, 1)])
    samples = [spread(n, first + k * _EACH, _EACH, x.device) for k in range(len(tested))]
    return max(check_image(model, image[None], some) for image, some in zip(tested, samples, strict=True))


def _check_few(model: Scoring, x: Float[Tensor, "1 C H W"], index: Tensor, scores: Tensor | None) -> float:
    """Each ablation asked by itself: held against the scores of a pass over all of them, in which votes are cast."""
    if scores is None:
        scores = _as_voted(model, _beside_others(x), index)[1:2]
    else:
        scores = scores[:, index]
    if not model.one_pass:
        what = "the same image alone and beside others: the base couples images or is random"
        return within_guard(model, scores, [scores_of(model, x, index)], what)
    kept, fills = model.ablation.masks(x.shape[2], x.shape[3], index)[:, None], _fills(x)
    ablated = torch.cat([torch.where(kept, x, fill) for fill in fills.values()])
    seen = scores_of(model, ablated, index.repeat(len(fills))[:, None])[None, :, 0].split(len(index), dim=1)
    what = f"pixels outside the band replaced by {', '.join(fills)}: the base sees more than its band"
    return within_guard(model, scores, list(seen), what)


def check_image(model: Scoring, x: Float[Tensor, "1 C H W"], index: Tensor | None = None) -> float:
    """The full check of some ablations of one image, by default 64; the largest change of a score seen."""
    n = model.ablation.count(*x.shape[2:])
    index = spread(n, 0, _EACH, x.device) if index is None else index
    alone = _as_voted(model, x, index)
    others = [_as_voted(model, _beside_others(x), index)[1:2], _as_voted(model, x, index)]
    deviation = within_guard(
        model, alone, others, "the same image alone, beside others and twice: the base couples images or is random"
    )
    if not model.one_pass:
        # Where the chunk divides N, every chunk above held the same ablations of the same image: shift them by one.
        for part in (slice(0, 1), slice(1, None)) if len(index) > 1 else ():
            seen = scores_of(model, x, index[part])
            what = "other ablations beside the same one: the base couples them"
            deviation = max(deviation, within_guard(model, alone[:, part], [seen], what))
        return deviation
    kept = model.ablation.masks(x.shape[2], x.shape[3], index)[:, None]
    for name, fill in _fills(x).items():
        ablated = torch.where(kept, x, fill)
        if n <= _EACH and not model.by_pairs:  # pairs cost what they are, so none but the band is asked for
            own = torch.cat([scores_of(model, some) for some in ablated.split(16)])
            seen = own[torch.arange(n, device=index.device), index][None]
        else:
            seen = scores_of(model, ablated, index[:, None])[None, :, 0]
        what = f"pixels outside the band replaced by {name}: the base sees more than its band"
        deviation = max(deviation, within_guard(model, alone, [seen], what))
    return deviation


def within_guard(model: Scoring, reference: Tensor, runs: list[Tensor], what: str) -> float:
    """The largest difference of any run's score from the reference's. Raises `InvalidInput` beyond the guard."""
    deviation = max((_difference(reference, run) for run in runs), default=0.0)
    guard = model.guard_on(reference.device)
    if not deviation <= guard:
        raise InvalidInput(
            f"scores differ by {deviation:.2g} over {what}; the guard is {guard:g}. Certificates need scores "
            "that move by no more than the guard: mend the base, or choose a larger guard if this is rounding"
        )
    return deviation


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference of any score. Ablations that have no score in either (a white image may overflow, and so
    may one that a patch turns white) are alike; one that has a score here and none there is infinitely far off.
    """
    if not one.numel():
        return 0.0
    known, again = has_score(one), has_score(other)
    apart = torch.where(known & again, (one - other).abs(), 0).max()
    return float(apart) if bool((known == again).all()) else float("inf")


def _as_voted(model: Scoring, images: Tensor, index: Tensor) -> Tensor:
    """The scores of some ablations, from the pass that votes are taken from: of a one-pass base the one over all bands.
    (Pairs are scored by one and the same function, all or some.)
    """
    whole = model.one_pass and not model.by_pairs
    return scores_of(model, images)[:, index] if whole else scores_of(model, images, index)


@torch.no_grad()
def scores_of(model: Scoring, x: Tensor, index: Tensor | None = None) -> Tensor:
    return model.scores(x.clone(), index)


def _beside_others(x: Tensor) -> Tensor:
    return torch.cat([noise(x), x, torch.ones_like(x)])


def _fills(x: Tensor) -> dict[str, Tensor]:
    return {"0": torch.zeros_like(x), "1": torch.ones_like(x), "noise": noise(x)}


def noise(x: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x[:1].shape, generator=generator, dtype=torch.float32).to(x)

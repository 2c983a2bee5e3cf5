"""What the proofs assume, tested before anything is certified."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustpatch.ablations.base import Ablation
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.passed import spread
from robustpatch.errors import InvalidInput
from robustpatch.voting.silence import has_score

ABLATIONS = 256  # that a check of the base looks at, on four images together
_EACH = ABLATIONS // 4
_CALLS = 64  # after so many calls that certify, each has been looked at


@runtime_checkable
class Scoring(Protocol):
    """The part of a `SmoothedClassifier` that is tested: the scores that it gives of each ablation."""

    ablation: Ablation

    @property
    def one_pass(self) -> bool: ...

    @property
    def by_pairs(self) -> bool: ...

    def guard_on(self, device: torch.device | str | None) -> float: ...

    def scores(
        self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B n K"]: ...


def few(total: int) -> int:
    """How many of the ablations are looked at by a call that tests a base which passed before."""
    return -(-total // _CALLS)


def shape_and_type(x: Tensor) -> None:
    """Refuse what is no batch of float images."""
    if not isinstance(x, Tensor):
        raise InvalidInput(f"images are a {type(x).__name__}; pass a torch tensor of floats in [0, 1]")
    if not torch.is_floating_point(x):
        raise InvalidInput(f"images have dtype {x.dtype}; pass floats in [0, 1] (for bytes: x.float() / 255)")
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise InvalidInput(f"images have shape {tuple(x.shape)}; pass [batch, channels, height, width]")


def image_values(x: Tensor) -> None:
    """Refuse images that are not finite or not in [0, 1]: nothing is certified about them."""
    shape_and_type(x)
    x = x.detach()
    if not bool(torch.isfinite(x).all()):
        raise InvalidInput("images contain NaN or infinite values; clean the input, nothing is certified about those")
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if low < 0 or high > 1:
        hint = "divide by 255" if high > 2 and low >= 0 else "scale to [0, 1] (normalisation belongs into the base)"
        raise InvalidInput(f"images range from {low:g} to {high:g}; they must lie in [0, 1]: {hint}")


def finite_scores(scores: Tensor) -> None:
    """Refuse scores that are not numbers: a NaN compares false with every threshold and would look like abstention."""
    if not bool(torch.isfinite(scores).all()):
        raise no_numbers()


def no_numbers() -> InvalidInput:
    """What a network is refused with that returns NaN or infinity for an image that is to be certified."""
    return InvalidInput(
        "the base returned NaN or infinite logits; nothing can be certified with it: mend it (a division by 0? an "
        "overflow, in less than float32?)"
    )


def evaluation_mode(model: torch.nn.Module) -> None:
    """Refuse a model in training mode, as a whole or in one of its parts."""
    training = next((name or type(module).__name__ for name, module in model.named_modules() if module.training), None)
    if training is not None:
        raise InvalidInput(
            f"{training} is in training mode, where batch statistics and dropout couple images; call model.eval() first"
        )


def base_is_sound(
    model: Scoring,
    x: Float[Tensor, "B C H W"],
    *,
    first: int = 0,
    again: bool = False,
    scores: Float[Tensor, "B N K"] | None = None,
) -> float:
    """Refuse a base whose scores depend on other images, on chance or, scored in one pass, on pixels it must not see.

    The first image, black, white and noise, 64 ablations each, from place `first` on in the order of `passed.spread`: a
    test that finds gross violations, not a proof that there are none. `again`: the next `few` on the first image alone,
    held against its `scores` where they are known. Returns the largest change of a score seen.
    """
    n = model.ablation.count(*x.shape[2:])
    if again:
        return _still_sound(model, x[:1], spread(n, first, few(n), x.device), scores)
    tested = torch.cat([x[:1], torch.zeros_like(x[:1]), torch.ones_like(x[:1]), _noise(x, 1)])
    samples = [spread(n, first + k * _EACH, _EACH, x.device) for k in range(len(tested))]
    return max(_base_is_sound(model, image[None], some) for image, some in zip(tested, samples, strict=True))


def _still_sound(model: Scoring, x: Float[Tensor, "1 C H W"], index: Tensor, scores: Tensor | None) -> float:
    """Each ablation asked by itself: held against the scores of a pass over all of them, in which votes are cast."""
    whole = model.one_pass and not model.by_pairs
    if scores is None:
        company = torch.cat([_noise(x), x, torch.ones_like(x)])
        scores = (_scores(model, company) if whole else _scores(model, company, index))[1:2]
    known = scores[:, index] if scores.shape[1] != len(index) else scores
    if not model.one_pass:
        what = "the same image alone and in company: the base couples images or is random"
        return _within_guard(model, known, [_scores(model, x, index)], what)
    kept = model.ablation.masks(x.shape[2], x.shape[3], index)[:, None]
    fills = {"0": torch.zeros_like(x), "1": torch.ones_like(x), "noise": _noise(x)}
    ablated = torch.cat([torch.where(kept, x, fill) for fill in fills.values()])
    seen = _scores(model, ablated, index.repeat(len(fills))[:, None])[None, :, 0].split(len(index), dim=1)
    what = f"pixels outside the band replaced by {', '.join(fills)}: the base sees more than its band"
    return _within_guard(model, known, list(seen), what)


def _base_is_sound(model: Scoring, x: Float[Tensor, "1 C H W"], index: Tensor | None = None) -> float:
    n = model.ablation.count(*x.shape[2:])
    index = spread(n, 0, _EACH, x.device) if index is None else index

    def sampled(images: Tensor) -> Tensor:
        """The sample's scores, from the pass that votes are taken from: of a one-pass base, the one over all bands.
        (Pairs are scored by one and the same function, all or some.)
        """
        whole = model.one_pass and not model.by_pairs
        return _scores(model, images)[:, index] if whole else _scores(model, images, index)

    alone = sampled(x)
    company = torch.cat([_noise(x), x, torch.ones_like(x)])
    others = [sampled(company)[1:2], sampled(x)]
    deviation = _within_guard(
        model, alone, others, "the same image alone, in company and twice: the base couples images or is random"
    )
    if not model.one_pass:
        # Where the chunk divides N, every chunk above held the same ablations of the same image: shift them by one.
        for part in (slice(0, 1), slice(1, None)) if len(index) > 1 else ():
            seen = _scores(model, x, index[part])
            what = "other ablations beside the same one: the base couples them"
            deviation = max(deviation, _within_guard(model, alone[:, part], [seen], what))
        return deviation
    kept = model.ablation.masks(x.shape[2], x.shape[3], index)[:, None]
    for name, fill in (("0", torch.zeros_like(x)), ("1", torch.ones_like(x)), ("noise", _noise(x))):
        ablated = torch.where(kept, x, fill)
        all_bands = n <= _EACH and not model.by_pairs  # pairs cost what they are, so none but the band is asked for
        own = torch.cat([_scores(model, some) for some in ablated.split(16)]) if all_bands else None
        seen = (
            own[torch.arange(n, device=index.device), index][None]
            if own is not None
            else _scores(model, ablated, index[:, None])[None, :, 0]
        )
        what = f"pixels outside the band replaced by {name}: the base sees more than its band"
        deviation = max(deviation, _within_guard(model, alone, [seen], what))
    return deviation


def _within_guard(model: Scoring, reference: Tensor, runs: list[Tensor], what: str) -> float:
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


@torch.no_grad()
def _scores(model: Scoring, x: Tensor, index: Tensor | None = None) -> Tensor:
    return model.scores(lent(x), index)


def _noise(x: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x[:1].shape, generator=generator, dtype=torch.float32).to(x)

"""What the proofs assume, tested before anything is certified."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.lending import lent

if TYPE_CHECKING:
    from robustpatch.smoothing import SmoothedClassifier

_ABLATIONS = 64  # ablations that a check of the base looks at


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
        raise InvalidInput(
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


def base_is_sound(model: SmoothedClassifier, x: Float[Tensor, "B C H W"]) -> float:
    """Refuse a base whose scores depend on other images, on chance or, scored in one pass, on pixels it must not see.

    The first image, black, white and noise, a sample of ablations: a test that finds gross violations, not a proof that
    there are none. Returns the largest change of a score seen.
    """
    tested = torch.cat([x[:1], torch.zeros_like(x[:1]), torch.ones_like(x[:1]), _noise(x, 1)])
    return max(_base_is_sound(model, image[None]) for image in tested)


def _base_is_sound(model: SmoothedClassifier, x: Float[Tensor, "1 C H W"]) -> float:
    n = model.ablation.count(*x.shape[2:])
    index = torch.linspace(0, n - 1, min(n, _ABLATIONS), device=x.device).round().long()

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
        few = n <= _ABLATIONS and not model.by_pairs  # pairs cost what they are, so none but the band is asked for
        own = torch.cat([_scores(model, some) for some in ablated.split(16)]) if few else None
        seen = (
            own[torch.arange(n, device=index.device), index][None]
            if own is not None
            else _scores(model, ablated, index[:, None])[None, :, 0]
        )
        what = f"pixels outside the band replaced by {name}: the base sees more than its band"
        deviation = max(deviation, _within_guard(model, alone, [seen], what))
    return deviation


def _within_guard(model: SmoothedClassifier, reference: Tensor, runs: list[Tensor], what: str) -> float:
    # torch's max keeps a NaN, Python's loses it.
    deviation = float(torch.stack([(reference - run).abs().max() for run in runs]).max()) if reference.numel() else 0.0
    if not deviation <= model.guard:
        raise InvalidInput(
            f"scores differ by {deviation:.2g} over {what}; the guard is {model.guard:g}. Certificates need scores "
            "that move by no more than the guard: mend the base, or choose a larger guard if this is rounding"
        )
    return deviation


@torch.no_grad()
def _scores(model: SmoothedClassifier, x: Tensor, index: Tensor | None = None) -> Tensor:
    return model.scores(lent(x), index)


def _noise(x: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(x[:1].shape, generator=generator, dtype=torch.float32).to(x)

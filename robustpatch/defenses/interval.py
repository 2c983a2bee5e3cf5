"""Bounds of what a network computes of any image of a box, in floating point: no rounding of its own leaves them.

Each layer maps bounds of its input to bounds of its output, as the layer's own arithmetic gives it. A monotone layer
(rectifiers, max pooling) maps the ends, exactly. A linear one, y = Wa + b of n products a component, takes the middle c
of the ends and the largest distance r from it: Wa + b lies within |W|r of Wc + b (Gowal et al. 2018, Section 3; Chiang
et al. 2020, Section 3). Rounding, u the unit roundoff and γ_k = ku/(1 - ku):

    what the network computes of a is within γ_{n+1}(|W||a| + |b|) of Wa + b, in any order of summation, fused or not
    (Higham 2002, Section 3.1), and |a| ≤ |c| + r; what we compute of c is within γ_{n+1}(|W||c| + |b|) of Wc + b.

So the output is within |W|(r + 2γ_{n+1}(|c| + r)) + 2γ_{n+1}|b| of what we compute of c. That radius costs one product,
of |W| with an inflated r, and is itself computed with at most n + 8 roundings of terms that are not negative: taking
m = n + 8 for n + 1 and a factor 1 + 2γ_m covers those, as (1 + 2mu)(1 - u)^m ≥ 1 for mu ≤ 1/2; a few smallest normal
numbers cover gradual underflow, and the ends are moved to the next float outside. Where sums of |W||a| + |b| could
overflow in some order, the radius is infinite.

Assumed: sums of products in IEEE arithmetic of the weights' type, float32 or float64. That nothing is computed in TF32
or bfloat16 is left to `defenses.ibp`, which refuses those settings; that no Winograd or Fourier transform replaces
a sum, as in NNPACK and cuDNN, to `sums_of_products`, within which network and bounds are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from robustpatch.errors import InvalidInput

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)  # in evaluation mode
_MONOTONE = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Flatten)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_PRODUCTS = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class _Linear:
    """A linear layer: its value Wa + b, |W|s of an s ≥ 0, |b| (or what rounds like it), and products a component."""

    value: Callable[[Tensor], Tensor]
    magnitude: Callable[[Tensor], Tensor]
    offset: Tensor | float
    terms: int


def layers_of(network: nn.Module) -> tuple[list[nn.Module], nn.Linear]:
    """The layers that a network applies one after the other, and the last, linear one: of an `nn.Sequential`, or of its
    attribute `sequential`.

    Raises `InvalidInput` for a layer without bounds, naming it, and where the last is not linear.
    """
    *layers, last = _flat(network, type(network).__name__) or [nn.Identity()]
    if not isinstance(last, nn.Linear):
        raise InvalidInput(f"network ends with {type(last).__name__}; end it with nn.Linear, in which classes compare")
    return layers, last


def _flat(module: nn.Module, name: str) -> list[nn.Module]:
    inner = getattr(module, "sequential", module)
    for one in (module, inner):
        if one._forward_hooks or one._forward_pre_hooks or "forward" in vars(one):
            raise InvalidInput(
                f"network has hooks on {name}, or another forward, which can change what it computes; remove them"
            )
    if isinstance(inner, nn.Sequential):
        if type(inner).forward is not nn.Sequential.forward:
            raise InvalidInput(
                f"network has {name}, a {type(inner).__name__} with a forward of its own, whose bounds are not known; "
                "use nn.Sequential"
            )
        # Not named_children: that leaves out a module which stands in the chain a second time.
        parts = [(part, own) for part, own in inner._modules.items() if own is not None]
        return [layer for part, own in parts for layer in _flat(own, f"{name}.{part}")]
    kind = type(module)
    if kind not in (*_NOTHING, *_MONOTONE, *_AVERAGES, *_NORMS, *_PRODUCTS):
        known = ", ".join(one.__name__ for one in (*_PRODUCTS, *_NORMS, *_AVERAGES, *_MONOTONE, *_NOTHING))
        raise InvalidInput(f"network has {name}, a {kind.__name__}, whose bounds are not known; use {known}")
    _check_options(module, name)
    return [module]


def _check_options(module: nn.Module, name: str) -> None:
    """Refuse layers that mix images or are not what their kind promises."""
    wrong = None
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        wrong = f"padding_mode is {module.padding_mode!r}; use zeros"
    if isinstance(module, nn.LeakyReLU) and not module.negative_slope >= 0:
        wrong = f"negative_slope is {module.negative_slope}, which is not monotone; use one of at least 0"
    if isinstance(module, _NORMS) and module.running_mean is None:
        wrong = "track_running_stats is False, so that it mixes images; set it"
    if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) != (1, -1):
        wrong = f"start_dim is {module.start_dim} and end_dim {module.end_dim}; use 1 and -1"
    if getattr(module, "return_indices", False):
        wrong = "return_indices is True; leave it out"
    if wrong is not None:
        raise InvalidInput(f"network has {name}, a {type(module).__name__}: {wrong}")


@contextmanager
def sums_of_products() -> Iterator[None]:
    """Within it every convolution is summed up as it is written: without NNPACK and cuDNN, which may transform it, with
    errors of the size of the largest input, not of those that a sum is made of.
    """
    cudnn = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.backends.cudnn.enabled = cudnn


def bounds(
    layers: Sequence[nn.Module], lower: Float[Tensor, "B ..."], upper: Float[Tensor, "B ..."], *, outward: bool = True
) -> tuple[Tensor, Tensor]:
    """What the layers compute, in evaluation mode, of any input between `lower` and `upper`: its least and largest.

    Without `outward`, rounding is left out: differentiable, for training. Float [B,…] as the layers shape it.
    """
    for layer in layers:
        if isinstance(layer, _NOTHING):
            continue
        if isinstance(layer, _MONOTONE):
            inplace = getattr(layer, "inplace", False)
            lower, upper = (layer(end.clone() if inplace else end) for end in (lower, upper))
            continue
        middle, radius = linear_bounds(layer, lower, upper, outward=outward)
        lower, upper = middle - radius, middle + radius
        if outward:
            lower, upper = _next(lower, -torch.inf), _next(upper, torch.inf)
    return lower, upper


def linear_bounds(layer: nn.Module, lower: Tensor, upper: Tensor, *, outward: bool = True) -> tuple[Tensor, Tensor]:
    """Middle and radius of what one linear layer computes between `lower` and `upper`; see the module."""
    linear = _linear(layer, lower.shape)
    middle = (lower + upper) / 2
    if not outward:
        return linear.value(middle), linear.magnitude((upper - lower) / 2)
    with sums_of_products():
        return linear.value(middle), _widened(linear, middle, torch.maximum(upper - middle, middle - lower))


def _linear(layer: nn.Module, shape: torch.Size) -> _Linear:
    if isinstance(layer, nn.Linear):
        offset = 0.0 if layer.bias is None else layer.bias.abs()
        return _Linear(layer, lambda s: F.linear(s, layer.weight.abs()), offset, layer.in_features)
    if isinstance(layer, nn.Conv2d):
        how = (layer.stride, layer.padding, layer.dilation, layer.groups)
        offset = 0.0 if layer.bias is None else layer.bias.abs()[:, None, None]
        terms = layer.weight[0].numel()
        return _Linear(layer, lambda s: F.conv2d(s, layer.weight.abs(), None, *how), offset, terms)  # type: ignore[arg-type]
    if isinstance(layer, _NORMS):
        return _norm(layer, len(shape))
    assert isinstance(layer, _AVERAGES)
    return _Linear(layer, lambda s: layer(s).abs(), 0.0, shape[-2] * shape[-1] + 1)


def _norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, axes: int) -> _Linear:
    """(a - mean)·w/√(var + ε) + b with the running statistics, in the order of either formula: at most 16 roundings."""
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    assert var is not None
    scale = torch.rsqrt(var + layer.eps) * (1.0 if layer.weight is None else layer.weight)
    offset = (scale * mean).abs() + (0.0 if layer.bias is None else layer.bias.abs())
    along = (-1, *[1] * (axes - 2))

    def value(a: Tensor) -> Tensor:
        return F.batch_norm(a, mean, var, layer.weight, layer.bias, eps=layer.eps)

    return _Linear(value, lambda s: s * scale.abs().view(along), offset.view(along), 16)


def _widened(linear: _Linear, middle: Tensor, radius: Tensor) -> Tensor:
    """|W|(r + 2γ(|c| + r)) + 2γ|b|, rounded up."""
    rate, least = rounding(linear.terms, middle.dtype), torch.finfo(middle.dtype).tiny
    inflated = (radius + rate * (middle.abs() + radius) + 16 * least) * (1 + rate)
    widened = (linear.magnitude(inflated) + (rate * linear.offset + 16 * (linear.terms + 1) * least)) * (1 + rate)
    return _unless_overflown(widened, rate)


def _unless_overflown(widened: Tensor, rate: float) -> Tensor:
    """Infinite where a sum of products might be, on the way, though what it comes to is not: it is at most the rate's
    part of what it is widened by.
    """
    return torch.where(widened > rate * torch.finfo(widened.dtype).max / 4, torch.inf, widened)


def rounding(terms: int, dtype: torch.dtype) -> float:
    """2γ_m for m = terms + 8: see the module. Raises `InvalidInput` for sums too long, or a type without a proof."""
    if dtype not in (torch.float32, torch.float64):
        raise InvalidInput(f"network computes in {dtype}, but rounding is bounded in float32 and float64; use float()")
    share = (terms + 8) * torch.finfo(dtype).eps / 2
    if share > 0.25:
        raise InvalidInput(f"network sums {terms} products, too many for {dtype}; use network.double()")
    return 2 * share / (1 - share)


def last_margins(
    layer: nn.Linear,
    lower: Float[Tensor, "M F"],
    upper: Float[Tensor, "M F"],
    own: Int[Tensor, " M"],
    *,
    outward: bool = True,
) -> Float[Tensor, "M K"]:
    """Of class c = `own` and every class j, a number below z_c - z_j for all inputs of the last layer.

    The difference is one product, with w_c - w_j, so that what raises both classes does not count (Chiang et al. 2020,
    Section 3). `outward`: what the network computes of either class is within γ_{n+1}(|w||a| + |b|) of the exact one.
    """
    order = own.argsort(stable=True)
    classes, counts = own[order].unique_consecutive(return_counts=True)
    ends = (end[order].split(counts.tolist()) for end in (lower, upper))
    found = [_against(layer, c, *some, outward=outward) for c, *some in zip(classes.tolist(), *ends, strict=True)]
    return torch.cat(found)[order.argsort()] if found else lower.new_zeros(0, layer.out_features)


def _against(layer: nn.Linear, c: int, lower: Tensor, upper: Tensor, *, outward: bool) -> Float[Tensor, "M K"]:
    weight, middle = layer.weight, (lower + upper) / 2
    bias = torch.zeros_like(weight[:, 0]) if layer.bias is None else layer.bias
    difference = weight[c] - weight
    value = F.linear(middle, difference, bias[c] - bias)
    if not outward:
        return value - F.linear((upper - lower) / 2, difference.abs())
    radius = torch.maximum(upper - middle, middle - lower)
    rate, least = rounding(layer.in_features + 2, weight.dtype), torch.finfo(weight.dtype).tiny
    shift = rate * (bias[c].abs() + bias.abs()) + 32 * (layer.in_features + 1) * least
    lost = F.linear(radius * (1 + rate), difference.abs())
    lost = lost + F.linear(rate * (middle.abs() + radius) + 16 * least, weight[c].abs() + weight.abs(), shift)
    return _next(value - _unless_overflown(lost * (1 + rate), rate), -torch.inf)


def _next(values: Tensor, toward: float) -> Tensor:
    return torch.nextafter(values, torch.full_like(values, toward))

"""The model of a run converted: which of the run's certificates it still gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from evaluate.cli.options import Options
from evaluate.gate.to_onnx import onnx
from evaluate.runs.claims import claims_of
from evaluate.runs.completed_run import CompletedRun
from evaluate.runs.reloading import loaded_again
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.within_masks import bound

_CALIBRATED = 64  # images by which the ranges of activations are found


@dataclass(frozen=True)
class Survival:
    """The images, by index, whose certificates the converted model does not give (`lost`), those that it gives anew
    (`gained`), and those of which it predicts something else (`changed`); `before` and `after` count certificates.
    """

    before: int
    after: int
    lost: list[int]
    gained: list[int]
    changed: list[int]

    @property
    def share(self) -> float:
        """The part of the certificates that is lost."""
        return len(self.lost) / max(1, self.before)


def certify_again(
    run: CompletedRun,
    options: Options,
    convert: Callable[[nn.Module, Tensor], nn.Module],
    on_progress: Callable[[int], None] = lambda _: None,
) -> Survival:
    """Certify every image of the run, made with these options, by the converted model. Raises `InvalidInput`, also
    where nothing can be certified in that precision.
    """
    model, images = loaded_again(f"run {run.output}", run.claim, options)
    device, total = options.device, len(run.records)
    threat = bound(parse_threat(options.patch, images.image_shape[1:]), images, total)
    converted = as_classifier(convert(model, images.batch(range(min(_CALIBRATED, total)))[0].to(device)))
    lost, gained, changed, after = [], [], [], 0
    for first in range(0, total, options.batch_size):
        some = range(first, min(first + options.batch_size, total))
        x, y = images.batch(some)
        claims = claims_of(converted, x.to(device), y.to(device), threat, options.top_k)
        for i, prediction, certified in zip(some, claims.prediction.tolist(), claims.certified.tolist(), strict=True):
            record = run.records[i]
            same = prediction == record.prediction
            after += certified
            changed += [] if same else [i]
            lost += [i] if record.certified and not (certified and same) else []
            gained += [i] if certified and not record.certified else []
        on_progress(some.stop)
    return Survival(sum(record.certified for record in run.records), after, lost, gained, changed)


def bfloat16(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in bfloat16; its guard becomes that of bfloat16."""
    return model.to(torch.bfloat16)


def int8(model: nn.Module, x: Tensor) -> nn.Module:
    """The model with the convolutions and linear layers of eight-bit inference, simulated in float32.

    Each weight is rounded to one of 255 levels of its output's own scale; what enters a layer to one of 256 between the
    least and the largest value seen on the images `x`, or 0. The sums of such products fit into float32 as they do into
    the 32 bits of an integer kernel, to rounding. A convolution whose weights the network applies by itself, as the
    first of a strip network, is given the pixels as they are: of 8-bit images these are 256 levels already. What is
    certified so says how the votes fall, and proves nothing of an integer kernel: where rounding moves a value over a
    step, the scores move by more than the guard.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    seen = _ranges(model, layers, x)
    for layer in layers:
        weight = layer.weight.detach()
        scale = weight.flatten(1).abs().amax(dim=1).clamp(min=1e-12) / 127
        zero = torch.zeros(len(scale), dtype=torch.int32, device=weight.device)
        layer.weight.data = torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)
        if layer in seen:
            layer.register_forward_pre_hook(_quantizer(*seen[layer]))
    return model


@torch.no_grad()
def _ranges(model: nn.Module, layers: Iterable[nn.Module], x: Tensor) -> dict[nn.Module, tuple[float, float]]:
    seen: dict[nn.Module, tuple[float, float]] = {}

    def note(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        low, high = seen.get(layer, (0.0, 0.0))
        seen[layer] = min(low, float(given[0].min())), max(high, float(given[0].max()))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        as_classifier(model).predict(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _quantizer(low: float, high: float) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    scale = max(high - low, 1e-12) / 255
    zero = round(-low / scale)

    def quantize(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.fake_quantize_per_tensor_affine(given[0], scale, zero, 0, 255), *given[1:]

    return quantize


CONVERSIONS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {"bfloat16": bfloat16, "int8": int8, "onnx": onnx}

"""Digital watermarking: remove, as if it were a visible watermark, what the network looks at most. No certificate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from kornia.morphology import dilation, erosion
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.overrides import TorchFunctionMode

from robustpatch.defenses.base import Defense
from robustpatch.defenses.filtered import Filtered, check_options, gradient_option, precise


@dataclass(frozen=True)
class Watermarking(Defense):
    """Pixels of dense saliency are taken out and filled in from those around them, and the network asked again.

    Saliency is the largest magnitude over channels of the guided backpropagation of the predicted class, divided by its
    largest value in the image. Where it exceeds `threshold` is a mask, which is eroded by a square of side `erode`
    (scattered pixels go) and dilated by one of side `dilate` (the rest closes and covers the border); sides are odd, 1
    does nothing. What is masked is filled in by `inpaint`.

    `gradient`: what an attack's gradient is; see `Filtered`. "through" takes the mask as it is, which is exact but
    where the mask changes. Hayes 2018, On Visible Adversarial Perturbations & Digital Watermarking, Section 4, who
    inpaints by OpenCV and gives no sizes for images like MNIST's.
    """

    name: ClassVar[str] = "watermarking"
    threshold: float = 0.25
    erode: int = 3
    dilate: int = 5
    gradient: str = "identity"

    def __post_init__(self) -> None:
        odd = "odd and at least 1"
        check_options(
            self,
            threshold=(0 <= self.threshold < 1, "in [0, 1)"),
            erode=(self.erode >= 1 and self.erode % 2 == 1, odd),
            dilate=(self.dilate >= 1 and self.dilate % 2 == 1, odd),
            gradient=gradient_option(self.gradient),
        )

    def wrap(self, network: nn.Module, *, num_classes: int) -> WatermarkRemoved:
        return WatermarkRemoved(network, self, num_classes=num_classes)


class WatermarkRemoved(Filtered):
    """The network's answer to the image without what it looked at most; see `Watermarking`."""

    defense: Watermarking

    def clean(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return inpaint(x, self.mask(x)).to(x.dtype)

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Of the network, three: the saliency's forward and backward pass, and the answer."""
        forward, answer = super().cost(height, width)
        return 3 * forward, 2 * forward + answer

    def mask(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"]:
        """The pixels taken out."""
        own = self.defense
        seen = saliency(self.network, x)
        largest = seen.amax(dim=(1, 2), keepdim=True)
        mask = (seen > own.threshold * largest).to(torch.float32)[:, None]
        for side, change in ((own.erode, erosion), (own.dilate, dilation)):
            if side > 1:
                mask = change(mask, torch.ones(side, side, device=x.device))
        return mask[:, 0] > 0.5


def saliency(network: nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H W"]:
    """The largest magnitude over channels of the guided gradient of each image's highest output, in float32.

    Guided backpropagation (Springenberg et al. 2015, Section 3.4) passes back through a rectifier what is positive,
    where its input was. Rectifiers of any spelling are met (`nn.ReLU`, in place or used twice, `torch.relu`,
    `x.relu()`); through other activations the gradient is the usual one.
    """
    with torch.inference_mode(False), torch.enable_grad(), _Guided():
        x = x.detach().clone().requires_grad_()
        highest = network(x.clone()).float().amax(dim=1)
        gradient = torch.autograd.grad(highest.sum(), x)[0]
    return gradient.float().abs().amax(dim=1)


class _Guided(TorchFunctionMode):
    """While it is on, every rectifier passes back positive gradients alone."""

    _rectifiers: ClassVar[set[Callable[..., Any]]] = {
        nn.functional.relu,
        nn.functional.relu_,
        torch.relu,
        torch.relu_,
        Tensor.relu,
        Tensor.relu_,
    }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._rectifiers:
            return _GuidedReLU.apply(args[0])
        return func(*args, **(kwargs or {}))


class _GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        return torch.where(ctx.saved_tensors[0], grad_outputs[0].clamp(min=0), 0)


def inpaint(x: Float[Tensor, "B C H W"], mask: Bool[Tensor, "B H W"]) -> Float[Tensor, "B C H W"]:
    """The images with what is masked filled in from outside: ring by ring, each pixel the mean of its known neighbours.

    Neighbours are the eight around a pixel; what one ring finds is known to the next. Telea's order (2004) without the
    weights that OpenCV gives neighbours: no maintained library inpaints batches of tensors, and this is linear in what
    is kept, so that gradients lead through it. An image of which nothing is known stays as it is.
    """
    channels = x.shape[1]
    x = precise(x)
    around = x.new_ones(1, 1, 3, 3)
    around[..., 1, 1] = 0
    known = (~mask)[:, None].to(x.dtype)
    filled = torch.where(mask[:, None], 0, x)
    while True:
        count = conv2d(known, around, padding=1)
        ring = (known == 0) & (count > 0)
        if not bool(ring.any()):
            return torch.where(known > 0, filled, x)
        total = conv2d(filled, around.expand(channels, 1, 3, 3), padding=1, groups=channels)
        filled = torch.where(ring, total / count.clamp(min=1), filled)
        known = torch.where(ring, 1, known)

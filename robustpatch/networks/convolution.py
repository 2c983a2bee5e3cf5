"""Convolutions that a CPU may be trusted with in less than float32."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from robustpatch import precision


def conv2d(
    x: Float[Tensor, "B C H W"],
    weight: Float[Tensor, "O C h w"],
    bias: Float[Tensor, " O"] | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Float[Tensor, "B O Y X"]:
    """`torch.nn.functional.conv2d`, computed in float32 where a CPU's kernel of less is known to answer wrongly; the
    result has the type that the kernel would have given. In float32, and on other devices, it is that function itself.

    oneDNN's bfloat16 kernel for processors with AMX, as in PyTorch 2.14.1, failed at 825 of 11,000 random shapes, all
    of two kinds:

    - where the output is one pixel wide, the kernel wider than one pixel and the stride across more than one, it reads
      memory that nobody wrote, going forward or for the gradient of the weights: NaN, or another number at every call;
    - where there are C < 32 channels and C·w ≥ 64, it multiplies with the wrong weights: the same wrong number at every
      call, as far from the right one as that is from zero. So do the patches of 16×16 pixels of a vision transformer
      that reads six channels.

    No setting tells which kernel will run, so all of these shapes are kept from it, also where it would be right.
    """
    where = x.device.type
    autocast, *products = precision.settings(where)
    narrow = bool(autocast) or x.dtype in (torch.bfloat16, torch.float16) or "bf16" in products
    if where != "cpu" or not narrow or not misread(tuple(x.shape), tuple(weight.shape), stride, padding):
        return functional.conv2d(x, weight, bias, stride, padding)
    kind = torch.get_autocast_dtype(where) if autocast else x.dtype
    with precision.float32_only(where):
        own = None if bias is None else bias.float()
        return functional.conv2d(x.float(), weight.float(), own, stride, padding).to(kind)


def misread(shape: tuple[int, ...], weight: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]) -> bool:
    """True for shapes, of images [B,C,H,W] and a weight [O,C,h,w], that `conv2d` keeps from the kernels that fail."""
    across, step = weight[3], stride[1]
    outputs = (shape[3] + 2 * padding[1] - across) // step + 1
    return (outputs == 1 and across > 1 and step > 1) or (shape[1] < 32 and shape[1] * across >= 64)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zero padding, neither dilated nor grouped, that computes as `conv2d` above does."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O Y X"]:
        stride, padding = (self.stride[0], self.stride[1]), self.padding
        assert not isinstance(padding, str)
        return conv2d(input, self.weight, self.bias, stride, (padding[0], padding[1]))

"""Networks of colour images, made to read encoded ones: what they compute of a wholly kept image stays the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustpatch.encoding import ComplementChannels, Encoding, MaskChannel
from robustpatch.errors import InvalidInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of torchvision's weights


class Normalized(nn.Module):
    """(x - mean) / std of each channel, before a network of whole images; grey images are shown in each channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.dtype).expand(-1, len(self.mean), -1, -1) - self.mean) / self.std


def widen(
    model: nn.Module,
    encoding: Encoding,
    *,
    image_size: tuple[int, int],
    in_channels: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """The model, reading encoded images: of a wholly kept image it computes what it did of the normalised one.

    The convolution that reads the image gets the encoding's channels, and the normalisation goes into its weights w:
    those of x become w·(1 - mean)/std, those of 1 - x become -w·mean/std, whose sum over a kept pixel is
    w·(x - mean)/std. A hidden pixel, (0, 0), adds nothing: at first the network takes it for the mean colour, as its
    own zero padding, and may learn to tell them apart. (Without a normalisation at hand, mean 0.5 and std 1 halve and
    mirror the weights.) For `MaskChannel`, the weights are w/std, and -Σ w·mean/std those of the mask. Grey images
    count as three equal channels.

    `model` is changed. Where it reads the image otherwise (standardised weights, two convolutions), a convolution 1×1
    before it makes the normalised image out of the encoded one. Raises `InvalidInput` where the model does not answer
    normalised images of `image_size`.
    """
    if in_channels not in (1, len(mean)):
        raise InvalidInput(
            f"images have {in_channels} channels, but the model reads {len(mean)}; pass images of {len(mean)} or of 1"
        )
    channels, weight = len(mean), next(model.parameters(), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, in_channels, *image_size, generator=generator).to(weight.device)
    encoded = encoding(x, torch.ones_like(x[:, 0], dtype=torch.bool)).to(weight.dtype)
    plain = Normalized(mean, std).to(weight.device)(x).to(weight.dtype)
    try:
        before, readers = answer(model, plain)
    except InvalidInput as error:
        read = first_channels(model)
        if read in (None, channels):
            raise
        raise InvalidInput(
            f"mean and std have {channels} values, but the model's first convolution reads {read} channels; give a "
            f"mean and a std of {read}"
        ) from error
    if len(readers) == 1 and type(readers[0]) is nn.Conv2d and readers[0].groups == 1:
        own = readers[0].weight
        _read(readers[0], encoding, in_channels, mean, std)
        try:
            after, _ = answer(model, encoded)
            if bool((after - before).abs().max() <= 1e-2 * (1 + before.abs().max())):
                return model
        except InvalidInput:
            pass
        readers[0].weight, readers[0].in_channels = own, channels
    mixed = nn.Conv2d(channels, channels, 1, bias=False, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        mixed.weight.copy_(torch.eye(channels)[:, :, None, None])
    _read(mixed, encoding, in_channels, mean, std)
    return nn.Sequential(mixed, model).train(model.training)


def _read(
    convolution: nn.Conv2d, encoding: Encoding, in_channels: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    weight = convolution.weight.detach()
    scale = weight / torch.tensor(std).to(weight)[:, None, None]
    shift = -scale * torch.tensor(mean).to(weight)[:, None, None]
    if in_channels == 1:
        scale, shift = scale.sum(dim=1, keepdim=True), shift.sum(dim=1, keepdim=True)
    if isinstance(encoding, ComplementChannels):
        parts = [scale + shift, shift]
    elif isinstance(encoding, MaskChannel):
        parts = [scale, shift.sum(dim=1, keepdim=True)]
    else:
        raise InvalidInput(f"encoding is {encoding.name}; a model can be widened for complement and mask")
    convolution.weight = nn.Parameter(torch.cat(parts, dim=1), requires_grad=convolution.weight.requires_grad)
    convolution.in_channels = convolution.weight.shape[1]


def first_channels(model: nn.Module) -> int | None:
    """The number of channels that the model's first convolution reads, in the order of its parts; None without one."""
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), None)


@torch.no_grad()
def answer(model: nn.Module, x: Tensor) -> tuple[Tensor, list[nn.Conv2d]]:
    """The model's logits in evaluation mode, and the convolutions that read the image itself."""
    readers: list[nn.Conv2d] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        if isinstance(module, nn.Conv2d) and inputs[0].shape == x.shape and module.in_channels == x.shape[1]:
            readers.append(module)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        logits = model(x)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"model is a {type(model).__name__} that fails on images of shape {tuple(x.shape[1:])} ({reason}); "
            "choose the image_size that it was built for"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InvalidInput(f"model is a {type(model).__name__} that answers with {what}, not with logits [B,K]")
    return logits, readers

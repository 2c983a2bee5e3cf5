"""The paper's base classifier for CIFAR-10."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.errors import InvalidInput
from robustpatch.networks.convolution import Conv2d


class ResNet18(nn.Module):
    """ResNet-18 for small images, on encoded (or whole) ones: torchvision's, but that the first convolution is 3×3 with
    stride 1 and nothing is pooled before the mean, as is usual on CIFAR-10.

    It sees one ablated image at a time: the NULL pattern of the encoding tells it which. It computes in the precision
    of its weights. With the defaults 11.2 million parameters. (Levine & Feizi 2020, Appendix D; He et al. 2016.)

    Args:
        num_classes: K. in_channels: E, as encoded. width: channels of the first stage, doubled in each of the other
            three; 32 has a quarter of the parameters and of the operations.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 6, width: int = 64) -> None:
        super().__init__()
        if width < 1:
            raise InvalidInput(f"width is {width}; give a number of channels of at least 1")
        from torchvision.models import resnet18  # slow to import

        self.net = resnet18(num_classes=num_classes)
        self.net.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.net.maxpool = nn.Identity()  # type: ignore[assignment]
        if width != 64:
            self.net.bn1 = nn.BatchNorm2d(width)
            for number, inputs in enumerate((1, 1, 2, 4)):
                setattr(self.net, f"layer{number + 1}", _stage(width * inputs, width << number))
            self.net.fc = nn.Linear(8 * width, num_classes)
        for stage in (self.net.layer2, self.net.layer3, self.net.layer4):  # on images of 8 pixels down to one
            halving: nn.Conv2d = stage[0].conv1  # type: ignore[assignment]
            stage[0].conv1 = Conv2d(halving.in_channels, halving.out_channels, 3, 2, 1, bias=False)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # in which convolutions are fastest on a CPU

    def forward(self, x: Float[Tensor, "M E H W"]) -> Float[Tensor, "M K"]:
        return self.net(x.to(self.net.fc.weight.dtype))


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    """Two residual blocks, the first of which halves the image where it widens it."""
    from torchvision.models.resnet import BasicBlock

    if inputs == outputs:
        return nn.Sequential(BasicBlock(inputs, outputs), BasicBlock(outputs, outputs))
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))
    return nn.Sequential(BasicBlock(inputs, outputs, 2, shortcut), BasicBlock(outputs, outputs))

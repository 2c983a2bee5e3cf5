"""The paper's base classifier for CIFAR-10."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import resnet18

from robustpatch.networks.convolution import Conv2d


class ResNet18(nn.Module):
    """ResNet-18 for small images, on encoded (or whole) ones: torchvision's, but that the first convolution is 3×3 with
    stride 1 and nothing is pooled before the mean, as is usual on CIFAR-10.

    It sees one ablated image at a time: the NULL pattern of the encoding tells it which. It computes in the precision
    of its weights. With the defaults 11.2 million parameters. (Levine & Feizi 2020, Appendix D; He et al. 2016.)

    Args:
        num_classes: K. in_channels: E, as encoded.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 6) -> None:
        super().__init__()
        self.net = resnet18(num_classes=num_classes)
        self.net.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.net.maxpool = nn.Identity()  # type: ignore[assignment]
        for stage in (self.net.layer2, self.net.layer3, self.net.layer4):  # on images of 8 pixels down to one
            halving: nn.Conv2d = stage[0].conv1  # type: ignore[assignment]
            safe = Conv2d(halving.in_channels, halving.out_channels, 3, 2, 1, bias=False, device="meta")
            safe.weight, stage[0].conv1 = halving.weight, safe

    def forward(self, x: Float[Tensor, "M E H W"]) -> Float[Tensor, "M K"]:
        return self.net(x.to(self.net.fc.weight.dtype))

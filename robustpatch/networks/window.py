"""A usual network that is shown one band or block at a time, cut out of the image: for photographs."""

from __future__ import annotations

from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.errors import InvalidInput
from robustpatch.networks.library import check_enlarge, create, is_library_name, library_and_model, normalization
from robustpatch.networks.library_options import check_permitted
from robustpatch.networks.one_pass import OnePass
from robustpatch.networks.widen import Normalized

_ON_EACH_SIDE = 32  # networks halve their images five times


class WindowNet(OnePass):
    """Logits of every band or block, scored by a network of torchvision or timm that sees its pixels and no others.

    Each is cut out and laid in the middle of a window whose sides are the next multiples of 32: a band of 25 columns of
    a photograph of 224×224 becomes an image of 224×32, which costs a seventh of the photograph. Around it is a colour
    that is learned for each place, at first the one that the network takes for 0: it tells where the band was.

    Args:
        ablation: `Columns`, `Rows` or `Blocks`, at any stride.
        enlarge: how many times as wide and high, bilinearly, each is shown: a network that was trained on photographs
            takes little from 4×32 pixels, and much from 16×128.
        of: the network, "timm:NAME" or "torchvision:NAME", one that takes images of any size. pretrained: begin with
            its weights for ImageNet (see `library.create`).
    """

    ablation: Columns | Rows | Blocks
    kinds = (Columns, Rows, Blocks)
    sees = "a window network sees columns, rows or blocks"
    scores_apart = True

    def __init__(
        self,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (224, 224),
        num_classes: int = 10,
        in_channels: int = 3,
        of: str = "timm:tf_efficientnet_lite0",
        pretrained: bool = False,
        enlarge: int = 1,
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        if not is_library_name(of):
            raise InvalidInput(f"of is {of!r}; name the network that sees the windows, timm:NAME or torchvision:NAME")
        check_permitted(of, *library_and_model(of), {})
        self._axes = self.ablation.axes(*image_size)
        self.enlarge = check_enlarge(enlarge)
        sides = [_ON_EACH_SIDE * -(-axis.size * enlarge // _ON_EACH_SIDE) for axis in self._axes]
        self.window = sides[0], sides[1]
        network = create(of, num_classes=num_classes, image_size=self.window, pretrained=pretrained)
        mean, std = normalization(network, None, None)
        if in_channels not in (1, len(mean)):
            raise InvalidInput(
                f"images have {in_channels} channels, but {of} reads {len(mean)}; pass such, or grey ones"
            )
        self.normalized = Normalized(mean, std)
        self.around = nn.Parameter(torch.zeros(prod(axis.count for axis in self._axes), len(mean)))
        self.network = network.to(memory_format=torch.channels_last)

    @property
    def pair_values(self) -> int:
        """The values of one window, which is what the network is shown of an image for an ablation."""
        return self.around.shape[1] * prod(self.window)

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        image = torch.arange(len(x), device=x.device)[:, None].expand_as(index)
        return self.score_pairs(x, image.flatten(), index.flatten()).unflatten(0, index.shape)

    def score_pairs(
        self, x: Float[Tensor, "B C H W"], image: Int[Tensor, " M"], index: Int[Tensor, " M"]
    ) -> Float[Tensor, "M K"]:
        """Logits of M ablations, each of the image of that number, all at once: memory follows M."""
        self._check_images(x)
        rows, columns = self._axes
        down = torch.div(index, columns.count, rounding_mode="floor")
        row = (down[:, None] * rows.stride + torch.arange(rows.size, device=x.device)) % rows.length
        column = (index % columns.count)[:, None] * columns.stride + torch.arange(columns.size, device=x.device)
        kept = x.permute(0, 2, 3, 1)[image[:, None, None], row[:, :, None], (column % columns.length)[:, None, :]]
        shown = self.normalized(kept.permute(0, 3, 1, 2))
        if self.enlarge > 1:
            shown = functional.interpolate(shown, scale_factor=self.enlarge, mode="bilinear")
        return self.network(self._framed(shown, self.around[index]))

    def _framed(self, shown: Float[Tensor, "M C h w"], colour: Float[Tensor, "M C"]) -> Float[Tensor, "M C y x"]:
        spare = [window - own for window, own in zip(self.window, shown.shape[2:], strict=True)]
        sides = (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2)
        frame = functional.pad(torch.zeros_like(shown[:1, :1]), sides, value=1.0)
        return functional.pad(shown, sides) + colour[:, :, None, None] * frame

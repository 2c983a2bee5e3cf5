"""A vision transformer that computes only the tokens that an ablation keeps."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.base import Ablation
from robustpatch.encoding import ComplementChannels, Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.one_pass import OnePass
from robustpatch.networks.transformer import parts_of

_ESTIMATED = 64  # ablations whose tokens are counted to know what one costs


class TokenDropViT(OnePass):
    """Logits of each ablation from the tokens that share a pixel with it, and from no others.

    The definition: the encoded ablated image is cut into the transformer's squares; those with no kept pixel, all NULL,
    are left out; the others get the position embedding of their place, and the transformer's blocks, pooling and head
    see them beside its class and register tokens. Of a square that is kept in part the hidden pixels are NULL.
    (Salman et al. 2022.) An ablation that keeps everything scores as the transformer itself.

    Which tokens are left out depends on the ablation alone, never on the image. Ablations of as many tokens are scored
    together: there is no padding that could leak, and no pixel off the band is ever read.

    Args:
        vit: timm's or torchvision's `VisionTransformer`, its patch embedding of `encoding.channels(in_channels)`
            channels; `robustpatch.wrap` widens one. Changed by nothing but training.
        ablation: any; the only one it can be used with.
        image_size: (height, width), multiples of the side of a token. in_channels: C. encoding: of hidden pixels.

    Raises `InvalidInput`, also where the tokens of a whole image do not score as `vit` does, or depend on their order.
    """

    kinds = (Ablation,)
    sees = "a transformer sees any fixed list of ablations"

    def __init__(
        self,
        vit: nn.Module,
        ablation: Ablation,
        *,
        image_size: tuple[int, int] = (224, 224),
        in_channels: int = 3,
        encoding: Encoding = ComplementChannels(),
    ) -> None:
        super().__init__(ablation, image_size, in_channels)
        self._parts = parts_of(vit)
        self.vit, self.encoding = vit, encoding
        embedding = self._parts.projection
        if embedding.in_channels != encoding.channels(in_channels):
            raise InvalidInput(
                f"vit has a patch embedding of {embedding.in_channels} channels, but images of {in_channels} are "
                f"{encoding.channels(in_channels)} in encoding {encoding.name}; widen it with robustpatch.wrap"
            )
        sides = self._sides
        if image_size[0] % sides[0] or image_size[1] % sides[1]:
            raise InvalidInput(
                f"image_size is {image_size[0]}x{image_size[1]}, no multiple of the tokens' {sides[0]}x{sides[1]} "
                "pixels; resize the images, or build the transformer with another patch size"
            )
        number, known = (image_size[0] // sides[0]) * (image_size[1] // sides[1]), self._parts.places
        if known is not None and known != number:
            raise InvalidInput(
                f"vit has positions for {known} tokens, but images of {image_size[0]}x{image_size[1]} have {number}; "
                "build it for this image size"
            )
        n = ablation.count(*image_size)
        sample = torch.linspace(0, n - 1, min(n, _ESTIMATED)).round().long()
        most = int(self._kept(sample).flatten(2).any(dim=2).sum(dim=1).max())
        self.pair_values = most * embedding.in_channels * sides[0] * sides[1]  # that one ablation shows the network
        self._check()

    @property
    def layers(self) -> nn.Module:
        """The transformer's blocks, which take nearly all of the time."""
        return self._parts.layers

    @property
    def _sides(self) -> tuple[int, int]:
        height, width = self._parts.projection.kernel_size
        return height, width

    def score_pairs(
        self, x: Float[Tensor, "B C H W"], image: Int[Tensor, " M"], index: Int[Tensor, " M"]
    ) -> Float[Tensor, "M K"]:
        """Logits of ablation `index[m]` of image `image[m]`, for each m: any pairs, at the cost of those."""
        self._check_images(x)
        squares = _squares(x, self._sides)
        asked, which = index.unique(return_inverse=True)
        kept = self._kept(asked)
        shown = kept.flatten(2).any(dim=2)
        numbers = shown.sum(dim=1)
        rows, logits = [], []
        for number in numbers.unique().tolist():
            some = (numbers[which] == number).nonzero()[:, 0]
            place = shown[which[some]].nonzero()[:, 1].unflatten(0, (len(some), number))
            encoded = self.encoding(
                squares[image[some, None], place].flatten(0, 1), kept[which[some, None], place].flatten(0, 1)
            )
            rows.append(some)
            logits.append(self._parts.head(self._parts.blocks(self._embed(encoded, place))))
        return torch.cat(logits)[torch.cat(rows).argsort()]

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        """Logits of the ablations in `index` of each image, all at once: `SmoothedClassifier` calls `score_pairs`,
        chunk by chunk.
        """
        image = torch.arange(len(x), device=x.device)[:, None].expand_as(index)
        return self.score_pairs(x, image.flatten(), index.flatten()).unflatten(0, index.shape)

    def _kept(self, index: Tensor) -> Tensor:
        """The kept pixels [n,T,side,side] of each square."""
        return _squares(self.ablation.masks(*self.image_size, index)[:, None], self._sides)[:, :, 0]

    def _embed(self, encoded: Tensor, place: Tensor) -> Float[Tensor, "M tokens D"]:
        """The tokens of squares [M·t,E,side,side] at `place` [M,t], behind the class and register tokens."""
        projection = self._parts.projection
        embedded = nn.functional.linear(encoded.flatten(1), projection.weight.flatten(1), projection.bias)
        return self._parts.tokens(embedded.unflatten(0, place.shape), place)

    @torch.no_grad()
    def _check(self) -> None:
        """Refuse a transformer that does more with its tokens than is done here."""
        weight = self._parts.projection.weight
        modes = {module: module.training for module in self.vit.modules()}
        self.vit.eval()
        try:
            shape = (1, self._parts.projection.in_channels, *self.image_size)
            encoded = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(weight)
            place = torch.arange(shape[2] // self._sides[0] * (shape[3] // self._sides[1]), device=weight.device)[None]
            tokens = self._embed(_squares(encoded, self._sides).flatten(0, 1), place)
            first, own, whole = tokens.shape[1] - place.shape[1], self._parts.blocks(tokens), self._parts.whole(encoded)
            turned = torch.cat([tokens[:, :first], tokens[:, first:].flip(1)], dim=1)
            back = self._parts.blocks(turned)
            back = torch.cat([back[:, :first], back[:, first:].flip(1)], dim=1)
        finally:
            for module, training in modes.items():
                module.training = training
        within = 1e-3 if weight.dtype in (torch.float32, torch.float64) else 0.1
        for other, what in ((whole, "differ from the transformer's own"), (back, "depend on their order")):
            if other.shape != own.shape or not bool((own - other).abs().max() <= within * (1 + own.abs().max())):
                raise InvalidInput(
                    f"vit is a {type(self.vit).__name__} whose tokens, embedded and put through its blocks one by one, "
                    f"{what}: none can be dropped; score it by enumeration, SmoothedClassifier(vit, ablation, …)"
                )


def _squares(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Images [B,C,H,W] cut into squares [B,T,C,side,side], row-major."""
    cut = x.unflatten(2, (-1, sides[0])).unflatten(4, (-1, sides[1]))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)

"""A network that sees one band at a time, and all bands of an image in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablation import Columns, Rows
from robustpatch.errors import InvalidInput


class StripNet(nn.Module):
    """Logits of every band of columns (or rows) in one pass; the receptive field of band n is exactly band n.

    The image is padded around its border by size - 1 columns, so that band n is the `size` columns from n·stride on
    without a break, also where it wraps. The first convolutions are valid across the band and together span its whole
    width (`size` - 1 in all); every other layer works along the band or on channels alone. The number of the band
    enters as a learned embedding (of each position along it) once the band is spanned. For rows, the image is
    transposed.

    Per-channel batch normalisation is the only normalisation: in evaluation mode it is a fixed affine map, and mixes
    neither bands nor images. (A layer or group norm over the feature map would let one band see another.)

    Args:
        ablation: `Columns` or `Rows`, the only one it can be used with.
        image_size: (height, width). num_classes: K. in_channels: C.
        widths: channels of the convolutions; each but the first halves the length of the band.
        hidden: units between the flattened band and the logits; 0 for none.
    """

    def __init__(
        self, ablation: Columns | Rows, *, image_size: tuple[int, int] = (28, 28), num_classes: int = 10,
        in_channels: int = 1, widths: Sequence[int] = (64, 128, 128), hidden: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(ablation, Columns | Rows):
            raise InvalidInput(f"ablation is {ablation}; a strip network sees columns or rows")
        if len(widths) < 1:
            raise InvalidInput(f"widths is {widths}; give at least one number of channels")
        self.ablation, self.image_size = ablation, image_size
        self._transposed = isinstance(ablation, Rows)
        rows, columns = ablation.axes(*image_size)
        axis, length = (rows, image_size[1]) if self._transposed else (columns, image_size[0])
        self._axis = axis
        convolutions, norms = [], []
        inputs, across = 2 * in_channels, axis.size - 1
        for depth, outputs in enumerate(widths):
            # What is left of the band's width is shared out evenly among the layers that remain.
            spanned = -(-across // (len(widths) - depth))
            across -= spanned
            stride = 1 if depth == 0 else 2
            convolutions.append(nn.Conv2d(inputs, outputs, (5, spanned + 1), stride=(stride, 1), padding=(2, 0)))
            norms.append(nn.BatchNorm2d(outputs))
            inputs, length = outputs, -(-length // stride)
            if depth == 0 or spanned > 0:
                self._joint = depth  # from here on, a column of the feature map is a band
                embedding = torch.randn(axis.count, outputs, length) * 0.1
        self.convolutions, self.norms = nn.ModuleList(convolutions), nn.ModuleList(norms)
        self.embedding = nn.Parameter(embedding)
        self.head = nn.Sequential(
            nn.Conv2d(inputs, hidden or num_classes, (length, 1)),
            *([nn.ReLU(inplace=True), nn.Conv2d(hidden, num_classes, 1)] if hidden else []),
        )

    def score_all(
        self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B n K"]:
        """Logits of all bands, or of the bands in `index`, [n] for every image alike or [B,n], at the cost of those."""
        if self._transposed:
            x = x.transpose(2, 3)
        axis = self._axis
        if index is None and axis.stride == 1:
            image = torch.cat([x, x[..., : axis.size - 1]], dim=3)
            return self._score(image, self.embedding.permute(1, 2, 0)[None]).transpose(1, 2)
        if index is None:
            index = torch.arange(axis.count, device=x.device)
        index = index.expand(len(x), -1) if index.ndim == 1 else index
        # Each band on its own: gathered side by side in the batch, never in one row with its neighbours.
        pixel = (index[..., None] * axis.stride + torch.arange(axis.size, device=x.device)) % axis.length
        image = torch.arange(len(x), device=x.device)[:, None, None]
        bands = x.permute(0, 3, 1, 2)[image, pixel].permute(0, 1, 3, 4, 2)  # [B,n,C,length,size]
        logits = self._score(bands.flatten(0, 1), self.embedding[index.flatten()][..., None])
        return logits.unflatten(0, index.shape)[..., 0]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        """The same as `score_all`."""
        return self.score_all(x)

    def _score(self, x: Tensor, embedding: Tensor) -> Float[Tensor, "M K n"]:
        x = torch.cat([x, 1 - x], dim=1).contiguous(memory_format=torch.channels_last)
        for depth, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(x)
            x = norm(x + embedding if depth == self._joint else x).relu()
        return self.head(x)[:, :, 0]

"""The parts of torchvision's and timm's vision transformers, under common names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from robustpatch.errors import InvalidInput

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer


class Parts(ABC):
    """A transformer taken apart; parameters are read anew at each use."""

    @property
    @abstractmethod
    def projection(self) -> nn.Conv2d:
        """The patch embedding."""

    @property
    @abstractmethod
    def places(self) -> int | None:
        """The number of places that have a position embedding; None where there is none."""

    @property
    @abstractmethod
    def layers(self) -> nn.Module:
        """The layers that take nearly all of the time."""

    @abstractmethod
    def tokens(self, embedded: Tensor, place: Tensor) -> Tensor:
        """Embedded squares [M,t,D] with the positions of `place` [M,t], behind class and register tokens [M,P+t,D]."""

    @abstractmethod
    def blocks(self, tokens: Tensor) -> Tensor:
        """The tokens [M,P+t,D] after all layers and the norm that ends them."""

    @abstractmethod
    def head(self, tokens: Tensor) -> Tensor:
        """Pooling and logits [M,K]."""

    @abstractmethod
    def whole(self, encoded: Tensor) -> Tensor:
        """The transformer's own features of encoded images [M,E,H,W] before `head`: [M,P+T,D]."""


class _Torchvision(Parts):
    def __init__(self, vit: VisionTransformer) -> None:
        self.vit = vit

    @property
    def projection(self) -> nn.Conv2d:
        assert isinstance(self.vit.conv_proj, nn.Conv2d)
        return self.vit.conv_proj

    @property
    def places(self) -> int:
        return self.vit.encoder.pos_embedding.shape[1] - 1

    @property
    def layers(self) -> nn.Module:
        return self.vit.encoder.layers

    def tokens(self, embedded: Tensor, place: Tensor) -> Tensor:
        positions = self.vit.encoder.pos_embedding[0]
        first = (self.vit.class_token[0] + positions[:1]).expand(len(place), -1, -1)
        return self.vit.encoder.dropout(torch.cat([first, embedded + positions[1:][place]], dim=1))

    def blocks(self, tokens: Tensor) -> Tensor:
        return self.vit.encoder.ln(self.vit.encoder.layers(tokens))

    def head(self, tokens: Tensor) -> Tensor:
        return self.vit.heads(tokens[:, 0])

    def whole(self, encoded: Tensor) -> Tensor:
        tokens = self.vit.conv_proj(encoded).flatten(2).transpose(1, 2)
        return self.vit.encoder(torch.cat([self.vit.class_token.expand(len(tokens), -1, -1), tokens], dim=1))


class _Timm(Parts):
    def __init__(self, vit) -> None:
        self.vit = vit

    @property
    def projection(self) -> nn.Conv2d:
        return self.vit.patch_embed.proj

    @property
    def places(self) -> int | None:
        if self.vit.pos_embed is None:
            return None
        return self.vit.pos_embed.shape[1] - (0 if self.vit.no_embed_class else self.vit.num_prefix_tokens)

    @property
    def layers(self) -> nn.Module:
        return self.vit.blocks

    def tokens(self, embedded: Tensor, place: Tensor) -> Tensor:
        vit, embedded = self.vit, self.vit.patch_embed.norm(embedded)
        named = (getattr(vit, name, None) for name in ("cls_token", "dist_token", "reg_token"))
        first = [token for token in named if token is not None]
        prefix = torch.cat(first, dim=1) if first else embedded.new_zeros(1, 0, embedded.shape[-1])
        if vit.pos_embed is not None:
            of_prefix = 0 if vit.no_embed_class else prefix.shape[1]
            embedded = embedded + vit.pos_embed[0, of_prefix:][place]
            prefix = prefix + vit.pos_embed[:, :of_prefix] if of_prefix else prefix
        tokens = vit.pos_drop(torch.cat([prefix.expand(len(place), -1, -1), embedded], dim=1))
        return vit.norm_pre(vit.patch_drop(tokens))

    def blocks(self, tokens: Tensor) -> Tensor:
        return self.vit.norm(self.vit.blocks(tokens))

    def head(self, tokens: Tensor) -> Tensor:
        return self.vit.forward_head(tokens)

    def whole(self, encoded: Tensor) -> Tensor:
        return self.vit.forward_features(encoded)


def parts_of(vit: Any) -> Parts:
    """The parts of a transformer of torchvision or timm. Raises `InvalidInput` for what embeds no squares alone."""
    known: Parts | None = None
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(vit).__mro__}  # of libraries not imported for it
    if "torchvision.models.vision_transformer.VisionTransformer" in kinds:
        known = _Torchvision(vit) if isinstance(vit.conv_proj, nn.Conv2d) else None
    elif "timm.models.vision_transformer.VisionTransformer" in kinds:
        embedding = vit.patch_embed
        plain = isinstance(getattr(embedding, "proj", None), nn.Conv2d) and not hasattr(embedding, "backbone")
        known = _Timm(vit) if plain else None
    projection = None if known is None else known.projection
    if (
        known is None
        or projection is None
        or (projection.stride, projection.groups, projection.padding) != (projection.kernel_size, 1, (0, 0))
    ):
        raise InvalidInput(
            f"vit is a {type(vit).__name__}; tokens are dropped of timm's and torchvision's VisionTransformer, whose "
            "patch embedding is one convolution of squares side by side; score others by enumeration: "
            "SmoothedClassifier(vit, ablation, …)"
        )
    return known


def is_token_transformer(model: nn.Module) -> bool:
    """True for models that `parts_of` knows: squares embedded each on its own, then a sequence."""
    try:
        parts_of(model)
    except InvalidInput:
        return False
    return True

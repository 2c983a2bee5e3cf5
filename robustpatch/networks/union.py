"""The one-pass networks of several ablations as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustpatch.ablations.union import Union
from robustpatch.errors import InvalidInput
from robustpatch.networks.one_pass import OnePass


class UnionNet(OnePass):
    """Logits of all ablations of a `Union`, each part's from its own one-pass network.

    Args:
        ablation: the `Union`. parts: a one-pass network for each of its parts, in order, for images of one size.
    """

    ablation: Union
    kinds = (Union,)
    sees = "a union network sees several ablations as one"

    def __init__(self, ablation: Union, parts: Sequence[OnePass]) -> None:
        built = tuple(part.ablation for part in parts)
        if built != ablation.parts:
            raise InvalidInput(
                f"parts are built for {', '.join(map(str, built))}, but ablation is {ablation}; give the one-pass "
                "network of each of its parts, in order"
            )
        super().__init__(ablation, parts[0].image_size, parts[0].in_channels)
        self.parts: Sequence[OnePass] = nn.ModuleList(parts)  # type: ignore[assignment]  # it is one

    def score_every(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N K"]:
        return torch.cat([part.score_all(x) for part in self.parts], dim=1)

    def score_some(self, x: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]) -> Float[Tensor, "B n K"]:
        scores = torch.zeros(())
        begin, found = 0, []
        for part, count in zip(self.parts, self.ablation.counts(x.shape[2], x.shape[3]), strict=True):
            own = (index >= begin) & (index < begin + count)
            places = own.any(dim=0).nonzero()[:, 0]  # where some image asks for one of this part's ablations
            if len(places):
                local = (index[:, places] - begin).clamp(0, count - 1)
                scores = part.score_all(x, local)
                found.append((own, places, scores))
            begin += count
        chosen = scores.new_zeros(*index.shape, scores.shape[-1])
        for own, places, scores in found:
            chosen = torch.where(own[..., None], torch.zeros_like(chosen).index_copy(1, places, scores), chosen)
        return chosen

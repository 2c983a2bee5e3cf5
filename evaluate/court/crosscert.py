"""CrossCert (Zhou et al. 2024): PatchCleanser and de-randomized smoothing, an alert where they disagree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evaluate.court.entry import Entry, Witness, claim, sizes
from evaluate.court.patchcleanser import DoubleMasking
from evaluate.court.views import Base, ask, columns, last_argmax


class CrossCert(DoubleMasking):
    """Made for patches of `side` × `side`. PatchCleanser answers, with all masks or with the first that is confirmed
    under all second ones, the majority's too; an alert where there is none, or where the votes of bands of `size`
    columns are for another class.

    Certified where all views under two masks agree; where both answers are the same and the votes lead by more than 2Δ;
    or where for each view under two masks that is of another class l, no patch in their columns makes l win the vote
    by the Δ bands that it meets. These were taken to lie a column further left than they do.
    """

    side, number, size, shift = 1, 2, 1, 0

    def one(self, pairs: Tensor) -> int:
        """The prediction of the masks, -1 where they disagree and none is confirmed."""
        first = pairs.diagonal()
        if bool((first == first[0]).all()):
            return int(first[0])
        confirmed = (pairs == first[:, None]).all(dim=1).nonzero()[:, 0].tolist()
        return int(pairs[confirmed[0], confirmed[0]]) if confirmed else -1

    def votes(self, x: Tensor) -> Tensor:
        """The class that each band votes for [B,W]."""
        return ask(self.base, x, columns(x, self.size)).argmax(dim=2)

    def elected(self, votes: Tensor) -> Tensor:
        """The class with the most of votes [B,W], the highest at a tie."""
        return last_argmax(torch.nn.functional.one_hot(votes, self.num_classes).sum(dim=1))

    def predict(self, x: Tensor) -> Tensor:
        masked = super().predict(x)
        return torch.where(masked == self.elected(self.votes(x)), masked, -1)

    def certify(self, x: Tensor, threat: Any) -> Any:
        masked, pairs, votes = super().predict(x), self.classes(x), self.votes(x)
        counts = torch.nn.functional.one_hot(votes, self.num_classes).sum(dim=1).sort(dim=1, descending=True).values
        lead = counts[:, 0] - counts[:, 1] > 2 * (self.side + self.size - 1)
        holds = [
            bool((own == c).all()) or (c == elected and ahead) or (c >= 0 and self.never_elected(own, voted, c, x))
            for own, voted, c, elected, ahead in zip(
                pairs, votes, masked.tolist(), self.elected(votes).tolist(), lead.tolist(), strict=True
            )
        ]
        return claim(masked, torch.tensor(holds, dtype=torch.bool) & (masked >= 0) & self.fits(threat))

    def never_elected(self, pairs: Tensor, votes: Tensor, c: int, x: Tensor) -> bool:
        """Tells whether no other class in `pairs` [M,M] wins the vote with a patch in the columns of its masks."""
        hidden, width = self.hidden(x).any(dim=1), x.shape[3]
        turned = torch.arange(self.side + self.size - 1)
        for i, k in (pairs != c).nonzero().tolist():
            for column in (hidden[i] | hidden[k]).nonzero()[:, 0].tolist():
                for start in range(column - self.side + 1, column + 1):
                    start = start if start >= 0 else self.side + start
                    patched = votes.clone()
                    patched[(start - self.size + self.shift + turned) % width] = pairs[i, k]
                    if int(self.elected(patched[None])[0]) == int(pairs[i, k]):
                        return False
        return True


class Aligned(CrossCert):
    """The same with the bands that the patch does meet."""

    shift = 1


def printed(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> CrossCert:
    return CrossCert(base, num_classes)


def repaired(base: Base, num_classes: int, image_shape: tuple[int, int, int]) -> Aligned:
    return Aligned(base, num_classes)


_C, _L = (-30.0, 30.0), (30.0, -30.0)
_SIZES = sizes("1x1x4/1x1", "1x1x6/1x1")

ENTRY = Entry(
    module="crosscert",
    title="CrossCert (Zhou et al. 2024)",
    claim="Under every patch of that size the answer is the clean prediction or an alert.",
    fault="Where a patch begins at column p, the code turns the votes of the bands from p - s on, but the patch "
    "meets those from p - s + 1 on. For patches of two columns or more the places that it tries make up for that; for "
    "one of a single column the last column of a mask is never tried.",
    repair="The bands from p - s + 1 on.",
    read="code: kio-cs/CrossCert, CrossCert_sta.py and utils/new.py; abstract, arXiv 2405.07668",
    unknown="Whether the paper alerts where PatchCleanser only has a majority: the function for warnings was not to "
    "be had, so that it does is assumed, in favour of the paper (its certificates by place need it). Unwavering "
    "certificates were not tried.",
    adapted="Patches of one pixel, two masks an axis, bands of one column. The fault needs a patch of one column, "
    "which no table of the paper has.",
    printed=printed,
    repaired=repaired,
    alerts=True,
    sizes=_SIZES,
    witness=Witness(_SIZES[0], (0, 3), (_C, _C, _L, _C, _L, _L, _C), (_L, _L)),
)

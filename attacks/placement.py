"""Where to put the patch: what the certificate leaves open, coarse grids, and sums of a map under the patch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.search import Search
from attacks.surfaces.patchcleanser import CleanMaskedPredictions
from attacks.surfaces.patchguard import rival_margins as masked_margins
from robustpatch.certificates.exact import rival_margins
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.patchguard import MaskedClassifier
from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat

Content = Callable[[Search, list[int], Tensor], Tensor]  # for P images, by number, at sites [P,count]: [P,count,C,h,w]


@dataclass(frozen=True)
class OpenPlacements:
    """Where one image can be attacked at all: placements by number, cheapest first, and the rivals cheapest there.

    `rivals` are the classes that the certificate leaves in reach there, cheapest first, padded with -1. Without a
    certificate all placements are open, in random order, the rival always -1 (whichever is nearest).
    """

    placement: Int[Tensor, " L"]
    rivals: Int[Tensor, "L R"]
    touched_set: Int[Tensor, " L"]

    def __len__(self) -> int:
        return len(self.placement)

    def tasks(self) -> list[tuple[int, int]]:
        """Every placement in order, towards whichever rival is nearest; then towards the second cheapest, and so on."""
        placement, rivals = self.placement.tolist(), self.rivals.tolist()
        first = [(site, -1) for site in placement]
        turns = range(1, self.rivals.shape[1])
        rest = [(s, row[k]) for k in turns for s, row in zip(placement, rivals, strict=True) if row[k] >= 0]
        return first + rest

    def spread(self) -> Iterator[tuple[int, int]]:
        """Placements and their cheapest rival, one of each touched set in turn, cheapest set first: for a few tries."""
        seen: dict[int, int] = {}
        turns = []
        for position, s in enumerate(self.touched_set.tolist()):
            turns.append((seen.get(s, 0), position))
            seen[s] = seen.get(s, 0) + 1
        for _, position in sorted(turns):
            yield int(self.placement[position]), int(self.rivals[position, 0])


def open_placements(search: Search, rivals: int = 3, *, batch: int | None = None) -> list[OpenPlacements]:
    """What is open on each image, at most `rivals` rivals each; equal margins in random order, from the image's stream.

    With a `batch`, a classifier that is not smoothed is asked itself: one random patch is scored at each placement, and
    where it brought success nearest comes first; but of PatchCleanser, its looks at the clean image say which are open.
    Single placements also where the threat has several patches: there every placement is open, and the order tells
    which of them alone does most.
    """
    images, sites = len(search.y), len(search.placements)
    shuffled = [torch.randperm(sites, generator=search.stream(i)).to(search.x.device) for i in range(images)]
    if search.looks is not None:
        return _unsteady(search, search.looks, shuffled)
    known = _rival_margins(search)
    blind = search.voters is None and not isinstance(search.model, SmoothedClassifier)
    if batch is not None and search.threat.count == 1 and blind:
        sites_of = torch.stack(shuffled) if shuffled else search.placements.new_zeros(0, sites)
        values = try_everywhere(search, sites_of[..., None], lambda s, image, _: s.noise(image), batch)
        shuffled = [order[value.argsort(stable=True)] for order, value in zip(shuffled, values, strict=True)]
    if known is None:
        none = search.placements.new_zeros(sites)
        closed = _placement_margin(search)
        found = []
        for i, order in enumerate(shuffled):
            if closed is not None:
                order = order[closed[i][order].argsort(stable=True)]
                order = order[closed[i][order] < 0]
            found.append(OpenPlacements(order, none[order, None] - 1, none[order]))
        return found
    of_placement, margins_of = known
    found, reach = [], []
    for i, order in enumerate(shuffled):
        margins = margins_of(i)
        reach.append(margins < 0)
        least, cheapest = margins.topk(min(rivals, margins.shape[1] - 1), dim=1, largest=False, sorted=True)
        if search.threat.count == 1:
            cheapest = cheapest.masked_fill(least >= 0, -1)
        margin = least[of_placement, 0]
        order = order[margin[order].argsort(stable=True)]
        if search.threat.count == 1:
            order = order[margin[order] < 0]
        sets = of_placement[order]
        found.append(OpenPlacements(order, cheapest[sets], sets))
    if reach and search.threat.count == 1:
        search.reach = torch.stack(reach)
    return found


def _unsteady(search: Search, looks: CleanMaskedPredictions, shuffled: list[Tensor]) -> list[OpenPlacements]:
    """Where no steady view hides the patch, those first that no view holds; one of each set of views that hide it in
    turn. Of several patches, every placement.
    """
    sets = torch.unique(looks.share == 1, dim=0, return_inverse=True)[1]
    found = []
    for hold, open_, order in zip(looks.hold, looks.open, shuffled, strict=True):
        order = order[hold[order].argsort(stable=True)]
        if search.threat.count == 1:
            order = order[open_[order]]
        found.append(OpenPlacements(order, torch.full_like(order[:, None], -1), sets[order]))
    return found


def _rival_margins(search: Search) -> tuple[Int[Tensor, " L"], Callable[[int], Int[Tensor, "S K"]]] | None:
    """The touched set of each placement of a single patch, and how far y stays ahead of each rival whatever happens at
    each set, of an image: below zero where the attacker may raise it above y. None where the classifier proves nothing,
    or in a way of its own.
    """
    model, single = search.model, PatchThreat(search.threat.height, search.threat.width)
    if search.voters is None:
        return None
    touched = search.voters.ablation.touched(single, *search.image_size)
    of_placement = touched.set_of_placement.to(search.x.device)
    proof = getattr(type(model), "certify", None)
    if isinstance(model, MaskedClassifier) and proof is MaskedClassifier.certify:
        margins = masked_margins(model, search.votes, search.y, single, search.image_size)
        return of_placement, lambda i: margins[i]
    certificate = search.certificate if proof is SmoothedClassifier.certify else None
    evidence = certificate.evidence if certificate is not None else None
    if evidence is None:
        return None
    votes = evidence.votes
    return of_placement, lambda i: rival_margins(votes.of(slice(i, i + 1)), search.y[i : i + 1], touched)[0]


def _placement_margin(search: Search) -> Int[Tensor, "B L"] | None:
    return search.certificate.placement_margin if search.certificate is not None else None


def try_everywhere(
    search: Search, sites: Int[Tensor, "B M count"], content: Content, batch: int
) -> Float[Tensor, "B M"]:
    """Score content at M sites of each image, in order; inf where a broken or exhausted image does not come to them."""
    value = torch.full(sites.shape[:2], torch.inf, device=sites.device)
    start = 0
    while start < sites.shape[1]:
        image = search.going().nonzero()[:, 0]
        if len(image) == 0:
            break
        block = slice(start, start + max(1, batch // len(image)))
        where = sites[image, block]
        rows = image.repeat_interleave(where.shape[1])
        patch = content(search, rows.tolist(), where.flatten(0, 1))
        value[image, block] = search.try_patches(rows, where.flatten(0, 1), patch, batch=batch).view(where.shape[:2])
        start = block.stop
    return value


def grid(threat: Patches, image_size: tuple[int, int], stride: int) -> Bool[Tensor, " L"]:
    """Which placements lie on rows and columns that are multiples of `stride`, or are the last ones."""
    marks = []
    for length, patch in zip(image_size, (threat.height, threat.width), strict=True):
        places = torch.arange(length - patch + 1)
        marks.append((places % stride == 0) | (places == length - patch))
    return (marks[0][:, None] & marks[1]).flatten()


def window_sums(values: Float[Tensor, "B H W"], threat: Patches) -> Float[Tensor, "B L"]:
    """Σ of a map over the rectangle at every placement in row-major order, the last row and column included."""
    total = torch.nn.functional.pad(values.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    h, w = threat.height, threat.width
    sums = total[:, h:, w:] - total[:, :-h, w:] - total[:, h:, :-w] + total[:, :-h, :-w]
    return sums.flatten(1).to(values.dtype)

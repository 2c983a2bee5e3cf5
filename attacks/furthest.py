"""Of what several attacks propose for an image, the patch that went furthest, and what all of them did to find it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from attacks.base import Proposal, judge, judge_of
from attacks.border import patches, visible
from attacks.criterion import Criterion, asked
from attacks.surfaces import whole_view
from robustpatch.classifiers.base import Classifier
from robustpatch.threats.base import Patches


class Furthest:
    """Of the proposals added for B images, the first that broke each one, else the nearest to it.

    A patch that shows (`border.visible`) comes before anything else; what leaves the threat comes before the clean
    image, so that the judge sees it. `standing`: the images, by number, that none has broken. `evaluations` [B] are
    those of all attacks.
    """

    def __init__(
        self, classifier: Classifier, x: Float[Tensor, "B C H W"], criterion: Criterion, threat: Patches
    ) -> None:
        self._classifier, self._x, self._criterion, self._threat = classifier, x, criterion, threat
        self.standing = torch.arange(len(x), device=x.device)
        self.evaluations = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self._x_adv = x.clone()
        self._corners = torch.zeros(len(x), threat.count, 2, dtype=torch.long, device=x.device)
        self._visited = torch.zeros(len(x), device=x.device)
        self._value = torch.full((len(x),), torch.inf, device=x.device)
        self._rank = torch.full((len(x),), -1, device=x.device)  # 0: the clean image, 1: outside the threat, 2: a patch
        self._seen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self._by = [""] * len(x)
        self._patches: list[frozenset[str]] = [frozenset()] * len(x)

    def add(self, name: str, found: Proposal, counted: bool, nested: bool) -> None:
        """What an attack proposes for the images standing. `counted`: what it tried tests the images; a control's does
        not. `nested`: it says itself how many patches its judge was asked about, as only an ensemble is believed.
        """
        rows = self.standing
        x, criterion = self._x[rows], self._criterion.of(rows)
        self.evaluations[rows] += found.evaluations
        outcome = judge(self._classifier, x, criterion, self._threat, found)
        if found.broken is not None:
            self._seen[rows] |= found.broken.to(x.device)
        valid = outcome.contained & outcome.in_range
        if counted:
            self._visited[rows] = torch.maximum(self._visited[rows], found.visited.to(self._visited.dtype))
            judged = found.patches if nested and found.patches is not None else patches(x, found, outcome)
            tried = ((found.visited > 0) & (found.evaluations > 0)).tolist()
            for i, own, searched in zip(rows.tolist(), judged, tried, strict=True):
                self._patches[i] |= own if searched else frozenset()
        shown = torch.where(valid[:, None, None, None], found.x_adv, x)
        with torch.no_grad():
            aimed = criterion.rival if bool((criterion.rival >= 0).any()) else None
            reached = whole_view(self._classifier, x, criterion.y, aimed, rank=criterion.rank)(shown)[0]
        if judge_of(self._classifier) is not self._classifier:
            # Which says nothing of a proof: the classifier's own answer comes next.
            reached = reached.masked_fill(asked(self._classifier, criterion, shown)[0], -torch.inf)
        rank = torch.where(valid, 2 * visible(x, found.x_adv).long(), 1)
        reached = torch.where(rank == 2, reached, torch.inf)
        nearer = (rank == self._rank[rows]) & (reached < self._value[rows])
        better = outcome.broken | (rank > self._rank[rows]) | nearer
        chosen = rows[better]
        self._x_adv[chosen], self._corners[chosen] = found.x_adv[better], found.corners[better].long()
        self._value[chosen], self._rank[chosen] = reached[better], rank[better]
        for i in chosen.tolist():
            self._by[i] = name
        self.standing = rows[~outcome.broken]

    def proposal(self) -> Proposal:
        """The furthest of each image, by whom, and how many patches were judged on the way."""
        found = (self._x_adv, self._corners, self.evaluations, self._visited)
        return Proposal(*found, by=self._by, patches=self._patches, broken=self._seen)

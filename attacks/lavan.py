"""LaVAN: one patch, where it happens to be, climbed for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from attacks.attack import Attack
from attacks.checks import require
from attacks.climb import Ascent
from attacks.gradient import differentiate
from attacks.search import Search
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches


@dataclass(frozen=True, kw_only=True)
class LaVAN(Attack):
    """Localized and visible adversarial noise: many sign steps at one placement, without a search for the place.

    The placement is random, or has its top-left pixel at `corner` (row, column). The steps, of lengths as in `Ascent`,
    raise the soft votes of class `target` and lower those of y; without a target, and for images of that class, those
    of the strongest rival. An image is done when the target is predicted, or without one anything but y. If the target
    is never reached, another wrong answer met on the way is what is proposed.

    At most (2·steps + 1)·n evaluations an image, n the ablations scored.

    Karmon et al. 2018, section 3; they step along the gradient of the logits itself. On mnist-columns2 with 5×5, 500
    steps break no more images than 50.
    """

    needs_gradient: ClassVar[bool] = True
    steps: int = 200
    step: float = 0.25
    last: float = 0.1
    target: int | None = None
    corner: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.target is None or self.target >= 0, "target", self.target, "a class, or None for any")
        self.ascent  # noqa: B018  its own checks

    @property
    def ascent(self) -> Ascent:
        return Ascent(self.steps, self.step, self.last)

    @property
    def name(self) -> str:
        return "lavan" if self.target is None else f"lavan-{self.target}"

    def check(self, threat: Patches) -> None:
        if self.corner is not None and threat.count != 1:
            raise InvalidInput(f"patch is {threat}, but corner places a single one; leave corner None for several")

    def _run(self, search: Search) -> None:
        self._check_target(search)
        sites = self._sites(search)
        image = search.going().nonzero()[:, 0]
        for some in image.split(self.batch) if len(image) else ():
            self._descend(search, some, sites)

    def _descend(self, search: Search, image: Int[Tensor, " P"], sites: Int[Tensor, "B count"]) -> None:
        goal = torch.full_like(search.y, -1 if self.target is None else self.target)
        goal = goal.masked_fill(goal == search.y, -1)
        corners = search.placements[sites]
        inside = search.threat.footprint(corners, *search.x.shape[2:])[:, None]
        missed, other = torch.zeros_like(search.broken), search.x.clone()  # wrong, but not the target
        search.visit(image.tolist(), sites[image].tolist())
        view = search.view(image, sites[image], goal[image])
        adv = search.paste(image, sites[image], search.noise(image.tolist()))
        sizes = self.ascent.sizes(torch.arange(self.steps)).tolist()
        for size in [*sizes, None]:
            moved = adv
            if size is None:
                with torch.no_grad():
                    value, prediction = view(adv)
            else:
                value, prediction, gradient = differentiate(view, adv)
                moved = (adv - size * gradient.sign()).clamp(0, 1)
            search.spend(image, view.cost * (1 if size is None else 2))
            wrong = search.hits(image, prediction)
            hit = wrong & ((goal[image] < 0) | (prediction == goal[image]))
            search.offer(image, corners[image], adv, value, hit)
            astray = wrong & ~hit
            missed[image[astray]], other[image[astray]] = True, adv[astray]
            left = search.going()[image]
            if size is None or not left.any():
                break
            adv = torch.where(inside[image], moved, adv)[left]
            image, view = image[left], view.keep(left)
        rest = (missed & ~search.broken).nonzero()[:, 0]
        nothing = torch.full_like(search.gap[rest], torch.inf)
        search.offer(rest, corners[rest], other[rest], nothing, missed[rest])

    def _sites(self, search: Search) -> Int[Tensor, "B count"]:
        """The placement of each image's patches, by number."""
        number, count = len(search.placements), search.threat.count
        if self.corner is None:
            draw = [torch.randint(number, (count,), generator=search.stream(i)) for i in range(len(search.y))]
            return torch.stack(draw).to(search.x.device) if draw else search.placements.new_zeros(0, count)
        rows, columns = (
            length - patch + 1 for length, patch in zip(search.x.shape[2:], search.patch_size, strict=True)
        )
        row, column = self.corner
        if not (0 <= row < rows and 0 <= column < columns):
            raise InvalidInput(
                f"attack corner is {self.corner}; a {search.threat} patch has rows 0 to {rows - 1} and columns 0 to "
                f"{columns - 1} to choose from"
            )
        return search.placements.new_full((len(search.y), 1), row * columns + column)

    def _check_target(self, search: Search) -> None:
        """Before an index out of range brings a GPU down."""
        if self.target is None or len(search.x) == 0:
            return
        classes = search.classifier.count_outputs(search.x)
        require(self.target < classes, "target", self.target, f"below {classes}, the number of classes")

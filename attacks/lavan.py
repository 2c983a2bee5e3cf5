"""LaVAN: one patch, wherever it happens to be, climbed for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from attacks.attack import Attack
from attacks.base import require
from attacks.climb import Ascent, Task, climb
from attacks.placement import sites
from attacks.search import Search
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches


@dataclass(frozen=True, kw_only=True)
class LaVAN(Attack):
    """Localized and visible adversarial noise: many sign steps at one placement, without a search for the place.

    The placement is random, or has its top-left pixel at `corner` (row, column). The steps, of lengths as in `Ascent`,
    raise the soft votes of class `target` and lower those of y; without a target, and for images of that class, those
    of the strongest rival. An image is done when the target is predicted, or without one anything but y. If the target
    is never reached, the last patch with another wrong answer is proposed.

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
        search.check_target(self.target)
        fixed = self._fixed(search)
        queues = []
        for y, found in zip(search.y.tolist(), sites(search, guided=False), strict=True):
            site = fixed if fixed is not None else next(found)[0]
            goal = -1 if self.target is None or self.target == y else self.target
            queues.append([Task(site, goal, only=goal >= 0)])
        climb(search, queues, self.ascent, batch=self.batch)

    def _fixed(self, search: Search) -> tuple[int] | None:
        """The number of the placement at `corner`."""
        if self.corner is None:
            return None
        sizes = zip(search.image_size, search.patch_size, strict=True)
        rows, columns = (length - patch + 1 for length, patch in sizes)
        row, column = self.corner
        if not (0 <= row < rows and 0 <= column < columns):
            raise InvalidInput(
                f"attack corner is {self.corner}; a {search.threat} patch has rows 0 to {rows - 1} and columns 0 to "
                f"{columns - 1} to choose from"
            )
        return (row * columns + column,)

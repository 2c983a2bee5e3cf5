"""The images and patches that a factory's certifier is tried on."""

from __future__ import annotations

from dataclasses import dataclass

from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Plan:
    """Images of one shape, and the patches they are tried with.

    `share`: by what the budget is divided. `brief`: few places and ballots of each of many patches. `deep`: against the
    first patch, answers are searched as well. `batches`: and several images are asked about at once. `only_long`: for
    counters and sums of many votes alone; left out where as many views were shown before.
    """

    shape: Shape
    threats: tuple[Patches, ...]
    share: int = 1
    brief: bool = False
    deep: bool = False
    batches: bool = False
    only_long: bool = False

    @property
    def fitting(self) -> list[Patches]:
        """The patches that fit on the images, each once."""
        _, height, width = self.shape
        return [one for one in dict.fromkeys(self.threats) if one.height <= height and one.width <= width]


def plans(shape: Shape, threat: Patches, long: int) -> list[Plan]:
    """The image asked about; small ones, searched in depth; low and narrow ones, of which some are as low or narrow as
    the patch and searched in depth too, as a patch reaches few of their many views; patches of every size; long ones.

    Besides `threat`: a patch of one pixel, one that is low and wide and the same on its side, two patches; and on low
    and on narrow images every height and width from 1 to two more than the larger side of the threat, whatever is
    odd, even or square, while the length of the image goes through four numbers on end: all remainders by a stride of 2
    or 4, and more of them by others.
    """
    channels, height, width = shape
    low, wide = max(1, threat.height // 2), threat.width + 2
    others = (PatchThreat(1, 1), PatchThreat(low, wide), PatchThreat(wide, low), PatchThreat(1, 1, 2))
    most = max(threat.height, threat.width) + 2
    side = most + 1
    small = PatchThreat(min(2, threat.height), min(2, threat.width), threat.count)
    sizes = [PatchThreat(h, w) for h in range(1, most + 1) for w in range(1, most + 1)]
    found = [Plan(shape, (threat,), batches=height * width <= 256)]
    for n, some in enumerate(((channels, 5, 13), (channels, 13, 5), (channels, 9, 10))):
        if small.height <= some[1] and small.width <= some[2]:
            found.append(Plan(some, (small,), share=2, deep=True, batches=n < 2))
    found += [
        Plan((channels, side, width + 1), (threat, *others)),
        Plan((channels, height + 3, side), (threat, *others)),
        Plan((channels, threat.height, max(40, 8 * threat.width)), (threat,), share=4, deep=True, batches=True),
        Plan((channels, max(40, 8 * threat.height), threat.width), (threat,), share=4, deep=True, batches=True),
        Plan(shape, (threat,), share=4, deep=True),
    ]
    for n in range(4):
        turn = tuple(sizes[k] for k in range(len(sizes)) if n == 0 or (k + k // most) % 4 == n)
        found.append(Plan((channels, side + n % 2, max(width, 3 * most) + 2 + n), turn, share=8, brief=True))
        found.append(Plan((channels, max(height, 3 * most) + 2 + n, side + n % 2), turn, share=8, brief=True))
    return [
        *found,
        Plan((channels, threat.height, long), (threat,), only_long=True),
        Plan((channels, long, threat.width), (threat,), only_long=True),
    ]

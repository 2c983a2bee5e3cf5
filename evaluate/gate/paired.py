"""Two runs on the same images: how sure it is that the second is worse, and how many images it takes to see that.

An image is lost where the first run has it and the second has not, and gained the other way round. Were both models
equally good, each of the images that differ would be lost or gained with the same chance (McNemar, exact, one-sided).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta, binom

LEVEL = 0.005  # of all tests of a gate together: of 1,000 gates without a drop, 5 fail, and 10 or more very rarely
POWER = 0.95
_SPENT = 0.1  # of the level, on not knowing how many images differ
_MOST = 10**6  # images that are thought of


@dataclass(frozen=True)
class Drop:
    """`lost` and `gained` of `images`; a true fall of up to `allowed` (a share of all images) is none."""

    lost: int
    gained: int
    images: int
    allowed: float = 0.0

    @property
    def points(self) -> float:
        """The fall in percent of all images; negative where it is a rise."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def differing(self) -> float:
        """The share of images that one run has and the other has not."""
        return (self.lost + self.gained) / self.images

    def is_seen(self, level: float) -> bool:
        """True where the fall is more than allowed. Of runs that fall by no more, at most `level` are said to.

        Exactly McNemar's test where nothing is allowed. Otherwise the chance of a differing image to be lost is at most
        (1 + allowed / d) / 2 where a share d of all images differs, and d is taken from its lower confidence bound
        (Clopper-Pearson at a tenth of `level`, which is taken off the rest: Berger and Boos 1994).
        """
        return self.lost >= _least(self.lost + self.gained, self.images, level, self.allowed)


@lru_cache(maxsize=2**12)
def power(drop: float, differing: float, images: int, level: float = LEVEL, allowed: float = 0.0) -> float:
    """The chance that a true fall by `drop` is seen, of so many images, a share `differing` of which differs."""
    if not 0 <= drop <= differing <= 1:
        raise ValueError(f"drop is {drop} and differing {differing}; 0 <= drop <= differing <= 1 is needed")
    middle, wide = images * differing, 8 * (images * differing * (1 - differing)) ** 0.5 + 8
    differ = np.arange(max(0, int(middle - wide)), min(images, int(middle + wide)) + 1)
    lost = (1 + drop / differing) / 2 if differing else 0.5
    seen = binom.sf(_needed(differ, images, level, allowed) - 1, differ, lost)
    return float((binom.pmf(differ, images, differing) * seen).sum())


def least_drop(differing: float, images: int, level: float = LEVEL, allowed: float = 0.0) -> float | None:
    """The smallest true fall that is seen with a chance of 95%; None where none is."""
    if differing <= 0 or power(differing, differing, images, level, allowed) < POWER:
        return None
    low, high = 0.0, differing
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, differing, images, level, allowed) >= POWER else (middle, high)
    return high


def images_needed(drop: float, differing: float, level: float = LEVEL, allowed: float = 0.0) -> int | None:
    """About the number of images of which a true fall by `drop` is seen with a chance of 95%; None above a million."""
    low, high = 1, 2
    while power(drop, differing, high, level, allowed) < POWER:
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > max(1, high // 500):
        middle = (low + high) // 2
        low, high = (low, middle) if power(drop, differing, middle, level, allowed) >= POWER else (middle, high)
    return high


@lru_cache(maxsize=2**12)
def _least(differ: int, images: int, level: float, allowed: float) -> int:
    return int(_needed(np.array([differ]), images, level, allowed)[0])


def _needed(differ: np.ndarray, images: int, level: float, allowed: float) -> np.ndarray:
    """The fewest images to be lost, of so many that differ, for a fall to be seen; more than these where none is."""
    if allowed == 0:
        return binom.isf(level, differ, 0.5).astype(np.int64) + 1
    low = np.where(differ > 0, beta.ppf(_SPENT * level, np.maximum(differ, 1), images - differ + 1), 0.0)
    chance = np.minimum(1.0, (1 + allowed / np.maximum(low, 1e-300)) / 2)
    return binom.isf((1 - _SPENT) * level, differ, chance).astype(np.int64) + 1

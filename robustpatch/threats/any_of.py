"""Several threats, of which the attacker picks one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.rectangle import PatchThreat


@dataclass(frozen=True)
class AnyOf(Threat):
    """The attacker picks one of several threats after seeing the image; what is certified holds for each of them.

    `AnyOf([PatchThreat(2, 10), PatchThreat(10, 2)])`: a 2×10 or a 10×2 rectangle. Nested `AnyOf` are flattened and
    repeated threats dropped. Raises `InvalidInput` when empty.
    """

    _threats: tuple[Patches, ...]

    def __init__(self, threats: Iterable[Threat]) -> None:
        flat = dict.fromkeys(one for threat in threats for one in threat.threats)
        if not flat:
            raise InvalidInput("threats is empty; name at least one PatchThreat")
        object.__setattr__(self, "_threats", tuple(flat))

    @classmethod
    def rectangles(cls, area: int, image_size: tuple[int, int]) -> AnyOf:
        """All rectangles of at most `area` pixels that fit the image, given by the maximal ones."""
        height, width = image_size
        widest = [(h, min(area // h, width)) for h in range(1, min(area, height) + 1)]
        maximal = [(h, w) for i, (h, w) in enumerate(widest) if i + 1 == len(widest) or widest[i + 1][1] < w]
        return cls(PatchThreat(h, w) for h, w in maximal)

    @property
    def threats(self) -> tuple[Patches, ...]:
        return self._threats

    def on(self, height: int, width: int) -> AnyOf:
        return AnyOf(one.on(height, width) for one in self.threats)

    @property
    def varies(self) -> bool:
        return any(one.varies for one in self.threats)

    def of_image(self, image: Float[Tensor, "C H W"]) -> Threat | None:
        found = [own for one in self.threats if (own := one.of_image(image)) is not None]
        return AnyOf(found) if found else None

    @property
    def everywhere(self) -> AnyOf:
        return AnyOf(one.everywhere for one in self.threats)

    def __str__(self) -> str:
        return ",".join(map(str, self.threats))

    def to_dict(self) -> dict[str, Any]:
        return {"any_of": [one.to_dict() for one in self.threats]}

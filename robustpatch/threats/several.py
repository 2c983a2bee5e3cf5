"""Patches of different shapes at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements


@dataclass(frozen=True)
class Several(Patches):
    """The attacker places all `parts` at the same time, overlapping or not: `Several([Disc(5), PatchThreat(3, 3)])`.

    What is certified holds for every choice of their places. Parts inside parts are flattened. Text: "disc:5 & 3x3".
    Raises `InvalidInput` for fewer than two parts.
    """

    shape: ClassVar[str] = "several"

    parts: tuple[Patches, ...]

    def __init__(self, parts: Iterable[Patches]) -> None:
        flat = tuple(one for part in parts for one in (part.parts if isinstance(part, Several) else (part,)))
        if len(flat) < 2:
            raise InvalidInput(f"patches at the same time are {len(flat)}; give at least two, as in disc:5 & 3x3")
        if not all(isinstance(one, Patches) for one in flat):
            raise InvalidInput("patches at the same time must be of one shape each; put alternatives (,) outside")
        if any(one.varies for one in flat):
            raise InvalidInput(
                f"patches at the same time are {' & '.join(map(str, flat))}: only patches of one shape may lie in a "
                "region of each image's own; take the shapes one by one, or a region that is a picture"
            )
        object.__setattr__(self, "parts", flat)

    @property
    def count(self) -> int:  # type: ignore[override]
        return sum(one.count for one in self.parts)

    @property
    def height(self) -> int:  # type: ignore[override]
        return max(one.height for one in self.parts)

    @property
    def width(self) -> int:  # type: ignore[override]
        return max(one.width for one in self.parts)

    def times(self, count: int) -> Patches:
        if count != self.count:
            raise InvalidInput(f"patch {self} is of {self.count} patches, not of {count}; name each of them")
        return self

    def on(self, height: int, width: int) -> Several:
        return Several(one.on(height, width) for one in self.parts)

    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        return tuple(family for one in self.parts for family in one.families(height, width))

    def __str__(self) -> str:
        return " & ".join(map(str, self.parts))

    def to_dict(self) -> dict[str, Any]:
        return {"shape": self.shape, "parts": [one.to_dict() for one in self.parts]}

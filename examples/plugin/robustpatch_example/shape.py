"""--patch diamond:7: a square on its corner, for every certificate and every attack."""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch

from robustpatch import InvalidInput
from robustpatch.threats import Stamp


@dataclass(frozen=True)
class Diamond(Stamp):
    """The pixels at most (`side` - 1) / 2 steps, right, left, up or down, from the middle of a square of that side."""

    shape: ClassVar[str] = "diamond"
    side: int
    count: int = 1

    def __post_init__(self):
        if self.side % 2 == 0 or self.side < 1:
            raise InvalidInput(f"patch diamond:{self.side} has no middle; give an odd side")

    @classmethod
    def read(cls, text: str):
        match = re.fullmatch(r"diamond:(\d{1,4})", text)
        return None if match is None else cls(int(match[1]))

    @property
    def pattern(self):
        steps = (torch.arange(self.side) - self.side // 2).abs()
        return steps[:, None] + steps <= self.side // 2

    @property
    def text(self) -> str:
        return f"diamond:{self.side}"

"""Patches in a region of each image's own: only on its dark pixels, or only on its bright ones."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from jaxtyping import Bool, Float
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches, Placements
from robustpatch.threats.within import Confined, Within

_RULE = re.compile(r"(off|on):(\d{1,9}(?:\.\d{1,30})?)", re.IGNORECASE)


class InEach(Confined):
    """A patch that lies wholly on pixels which differ from image to image.

    So the places are different ones on each image, and on some there may be none: what is certified of such an image
    holds because there is no patch. `of_image` gives the threat of one image, a `Within`, that everything takes;
    `families` raises `InvalidInput`, so that whoever knows nothing of this refuses it.
    """

    patch: Patches

    @property
    @abstractmethod
    def where(self) -> str:
        """The text of the region."""

    @abstractmethod
    def regions(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"]:
        """The allowed pixels of each clean image."""

    @property
    def varies(self) -> bool:
        return True

    @property
    def everywhere(self) -> Patches:
        return self.patch

    def times(self, count: int) -> Self:
        return replace(self, patch=self.patch.times(count))  # type: ignore[type-var]  a dataclass

    def on(self, height: int, width: int) -> Self:
        return replace(self, patch=self.patch.on(height, width))  # type: ignore[type-var]  a dataclass

    def places(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B L"]:
        """Those of the places of `patch`, in their order, that each image allows."""
        return self.patch.family(x.shape[2], x.shape[3]).inside(self.regions(x)).T

    def of_image(self, image: Float[Tensor, "C H W"]) -> Within | None:
        if not bool(self.places(image[None]).any()):
            return None
        return Within.of(self.patch, self.regions(image[None])[0], self.where)

    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        raise InvalidInput(
            f"patch {self} has other places on every image, and what was asked is of all images alike; ask image by "
            "image, about threat.of_image(image)"
        )

    def __str__(self) -> str:
        return f"{self.patch} in {self.where}"


@dataclass(frozen=True)
class WithinEach(InEach):
    """A patch that lies wholly on those pixels of the clean image that a rule allows: a sticker beside the digit.

    `rule` is "off:0.5", the pixels of which every channel is below 0.5, or "on:0.5", all others. Text: "5x5 in
    off:0.5". Raises `InvalidInput` for another rule, a threshold beyond 1, and more than one shape.
    """

    shape: ClassVar[str] = "within-each"

    patch: Patches
    rule: str

    def __post_init__(self) -> None:
        match = _RULE.fullmatch(self.rule)
        if match is None or not 0 < float(match[2]) <= 1:
            raise InvalidInput(
                f"region is {one_line(self.rule, 60)!r}; give off:0.5 (where the image is darker than that) or on:0.5 "
                "(where it is not), above 0 and at most 1"
            )
        if not self.is_one_shape(self.patch):
            raise InvalidInput(f"patch in a region is {self.patch}; give one shape, such as 5x5 or disc:7")

    @staticmethod
    def is_rule(text: str) -> bool:
        """Tell whether the text names pixels by their values, and is not the name of a picture."""
        return _RULE.fullmatch(text) is not None

    @property
    def where(self) -> str:
        return self.rule

    def regions(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"]:
        kind, _, threshold = self.rule.lower().partition(":")
        dark = (x.double() < float(threshold)).all(dim=1)
        return dark if kind == "off" else ~dark

    def to_dict(self) -> dict[str, Any]:
        return {"shape": self.shape, "patch": self.patch.to_dict(), "rule": self.rule}

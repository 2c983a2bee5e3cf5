"""The interface of a threat: a value that says which pixels an attacker may overwrite, on images of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, get_type_hints

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput


class Placements(ABC):
    """The L places that one patch can take on images of `size` = (height, width), and the pixels it covers there.

    Certificates, attacks and the judge ask this and nothing else about a shape. A new shape has to say `anchors` and
    `footprint`; everything else follows from these, and a closed form that replaces it is an optimisation.
    """

    size: tuple[int, int]

    @property
    @abstractmethod
    def anchors(self) -> Int[Tensor, "L 2"]:
        """A pair (row, column) that names each place, no two the same: of a rectangle its top-left corner."""

    @abstractmethod
    def footprint(self, index: Int[Tensor, " n"]) -> Bool[Tensor, "n H W"]:
        """The pixels that the patch covers at the places of these numbers, on the device of `index`."""

    def sets(self) -> tuple[list[Bool[Tensor, "h w"]], Int[Tensor, "L 3"]]:
        """The different sets of pixels that the patch covers, each cut to its box; and of each place the number of the
        set, and the row and column of the box: what a proof file lists.
        """
        numbers, patterns, places = dict[tuple[torch.Size, bytes], int](), list[Tensor](), list[tuple[int, int, int]]()
        for footprints in self._parts_of_footprints():
            for covered in footprints:
                rows, columns = (covered.any(dim=dim).nonzero()[:, 0].tolist() for dim in (1, 0))
                pattern = covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].clone()
                key = (pattern.shape, pattern.numpy().tobytes())
                if key not in numbers:
                    numbers[key] = len(patterns)
                    patterns.append(pattern)
                places.append((numbers[key], rows[0], columns[0]))
        return patterns, torch.tensor(places)

    def corners(self, anchors: Int[Tensor, "... 2"]) -> Int[Tensor, "... 2"]:
        """The top-left corner (row, column) of the box that holds the patch's content, at the place of each anchor."""
        return anchors

    @property
    def rectangle(self) -> tuple[int, int] | None:
        """Height and width where the places are all those of one rectangle, in row-major order; else None.

        Closed forms for rectangles ask this; without it they take the footprints.
        """
        return None

    @property
    def pixels(self) -> int:
        """The most pixels that the patch covers at any place."""
        return max(int(covered.flatten(1).sum(dim=1).max()) for covered in self._parts_of_footprints())

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width of the smallest rectangle that holds what the patch covers, wherever it is."""
        sizes = []
        for covered in self._parts_of_footprints():
            for dim in (2, 1):  # the rows that hold a pixel, then the columns
                held = covered.any(dim=dim).long()
                last = held.shape[1] - held.flip(1).argmax(dim=1)
                sizes.append(int((last - held.argmax(dim=1)).max()))
        return max(sizes[::2]), max(sizes[1::2])

    @property
    def box(self) -> tuple[int, int]:
        """Height and width of the box that holds the patch's content, whose top-left corner `corners` says."""
        return self.extent

    def __len__(self) -> int:
        return len(self.anchors)

    def find(self, anchors: Int[Tensor, "n 2"]) -> Int[Tensor, " n"]:
        """The number of the place that each anchor names; -1 where it names none."""
        same = (anchors[:, None] == self.anchors.to(anchors.device)).all(dim=2)
        return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)

    def hits(self, masks: Bool[Tensor, "n H W"]) -> Bool[Tensor, "L n"]:
        """True where the patch shares a pixel with the mask, at each place."""
        marked = masks.flatten(1).to(torch.float32)
        shared = [
            covered.flatten(1).to(torch.float32) @ marked.T for covered in self._parts_of_footprints(masks.device)
        ]
        return torch.cat(shared) > 0

    def covered(self, member: Bool[Tensor, "M L"]) -> Bool[Tensor, "M H W"]:
        """The pixels that the patch covers at any of the places marked in each row."""
        found, first = member.new_zeros(len(member), self.size[0] * self.size[1], dtype=torch.float32), 0
        for footprints in self._parts_of_footprints(member.device):
            marked = member[:, first : first + len(footprints)].to(torch.float32)
            found, first = found + marked @ footprints.flatten(1).to(torch.float32), first + len(footprints)
        return (found > 0.5).view(-1, *self.size)

    def means(self, values: Float[Tensor, "B H W"]) -> Float[Tensor, "B L"]:
        """The mean of the values over the pixels that the patch covers, at each place."""
        flat = (covered.flatten(1).to(values.dtype) for covered in self._parts_of_footprints(values.device))
        return torch.cat([values.flatten(1) @ covered.T / covered.sum(dim=1) for covered in flat], dim=1)

    def inside(self, masks: Bool[Tensor, "n H W"]) -> Bool[Tensor, "L n"]:
        """True where the mask holds all of the patch, at each place."""
        return ~self.hits(~masks)

    def _parts_of_footprints(self, device: torch.device | str = "cpu") -> Iterator[Bool[Tensor, "n H W"]]:
        """The footprints of all places, some at a time: 64 MiB as floats."""
        some = max(1, 2**24 // (self.size[0] * self.size[1]))
        return map(self.footprint, torch.arange(len(self), device=device).split(some))


class Threat(ABC):
    """One or several alternatives, of which the attacker picks one after seeing the image.

    Threats are values: hashable, comparable, and of no image size. `str` and `parse_threat` are inverse, and so are
    `to_dict` and `threat_from_dict`: one text and one dict form, in options, records, proofs and pages.
    """

    @property
    @abstractmethod
    def threats(self) -> tuple[Patches, ...]:
        """The alternatives; of a threat that is none of several, itself."""

    @abstractmethod
    def on(self, height: int, width: int) -> Threat:
        """The threat on images of that size: sizes given as a share of the area become pixels. Raises `InvalidInput`
        where a patch does not fit such an image.
        """

    @property
    def varies(self) -> bool:
        """True where the places depend on the image: then `families` are refused, and `of_image` says those of one."""
        return False

    def of_image(self, image: Float[Tensor, "C H W"]) -> Threat | None:
        """The threat as it is on this clean image; None where no patch of it has a place there."""
        return self

    @property
    def everywhere(self) -> Threat:
        """The same without the regions that each image has of its own: it holds what `of_image` says of any image."""
        return self

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold; `threat_from_dict` is the inverse."""

    def check_fits(self, height: int, width: int) -> None:
        """Raise `InvalidInput` when a patch is larger than an image of `height` × `width`, or there are too many."""
        self.on(height, width)


class Patches(Threat):
    """The attacker overwrites all channels of the pixels under up to `count` patches, each at one of its placements.

    The patches may overlap, and their content is any value in [0, 1]. `height` and `width` are those of the smallest
    rectangle that holds a patch: attacks keep contents in such ones. Subclasses are frozen dataclasses; their fields
    are what `to_dict` holds, under the name `shape`.
    """

    shape: ClassVar[str]
    count: int
    height: int
    width: int

    @property
    def threats(self) -> tuple[Patches, ...]:
        return (self,)

    @abstractmethod
    def on(self, height: int, width: int) -> Patches: ...

    def of_image(self, image: Float[Tensor, "C H W"]) -> Patches | None:
        return self

    @property
    def everywhere(self) -> Patches:
        return self

    def times(self, count: int) -> Patches:
        """The same with another number of patches."""
        return self if count == self.count else replace(self, count=count)  # type: ignore[type-var]  a dataclass

    def family(self, height: int, width: int) -> Placements:
        """The places of each of the patches, on images of that size, where all are of one shape. Raises
        `InvalidInput` for patches of different shapes.
        """
        families = self.families(height, width)
        if len(set(families)) > 1:
            raise InvalidInput(
                f"patch is {self}: patches of different shapes at the same time are certified by votes (of columns, "
                "rows, blocks or grids) and by patchcleanser alone; take patches of one shape"
            )
        return families[0]

    @abstractmethod
    def families(self, height: int, width: int) -> tuple[Placements, ...]:
        """The places of each of the `count` patches on images of that size. Raises `InvalidInput` where none fits."""

    @classmethod
    def read(cls, text: str) -> Patches | None:
        """One patch of this shape from its text, without count, angles or region; None for a text of another shape.

        A text without a colon comes in lower case.
        """
        return None

    def placements(self, height: int, width: int) -> Int[Tensor, "L 2"]:
        """The anchors of a patch's places: of a rectangle all top-left corners (row, column), row-major."""
        return self.family(height, width).anchors

    def footprint(self, at: Int[Tensor, "P count 2"], height: int, width: int) -> Bool[Tensor, "P H W"]:
        """The pixels under the patches anchored at `at`, together; an anchor of no place covers nothing."""
        covered = torch.zeros(len(at), height, width, dtype=torch.bool, device=at.device)
        for patch, family in enumerate(self.families(height, width)):
            number = family.find(at[:, patch])
            known = (number >= 0).nonzero()[:, 0]
            covered[known] |= family.footprint(number[known])
        return covered

    def contains(self, changed: Bool[Tensor, "B H W"], at: Int[Tensor, "B count 2"]) -> Bool[Tensor, " B"]:
        """True where all changed pixels lie under patches anchored at `at`, and these are places of the threat."""
        height, width = changed.shape[1:]
        placed = torch.ones(len(at), dtype=torch.bool, device=at.device)
        for patch, family in enumerate(self.families(height, width)):
            placed &= family.find(at[:, patch]) >= 0
        return placed & ~(changed & ~self.footprint(at, height, width)).flatten(1).any(dim=1)

    def to_dict(self) -> dict[str, Any]:
        return {"shape": self.shape, **{own.name: getattr(self, own.name) for own in fields(self)}}  # type: ignore[arg-type]  a dataclass

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Patches:
        """The inverse of `to_dict`, of everything but the shape's name. Raises `InvalidInput`."""
        hints = get_type_hints(cls)
        kinds = {own.name: hints[own.name] for own in fields(cls)}  # type: ignore[arg-type]  a dataclass
        if given.keys() != kinds.keys() or any(type(given[name]) is not kind for name, kind in kinds.items()):
            raise InvalidInput(
                f"threat is a {cls.shape} of {one_line(dict(given), 80)}; it must have "
                f"{', '.join(f'{name} ({kind.__name__})' for name, kind in kinds.items())}"
            )
        return cls(**given)

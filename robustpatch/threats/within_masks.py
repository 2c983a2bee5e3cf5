"""Patches in a region of each image's own that a black-and-white picture shows: one picture for each image's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.bitmap import as_tensor, black_and_white, check_name, pack, unpack
from robustpatch.threats.within_each import InEach

_AT_ONCE = 100  # images read at the same time


@dataclass(frozen=True)
class WithinMasks(InEach):
    """A patch that lies wholly on the white pixels of the picture that belongs to the image: on its sign, on its car.

    Of the image CLASS/NAME.jpg of a folder the picture is `folder`/CLASS/NAME.png, black and white, of the images'
    size as a model sees them. Text: "5x5 in masks/". Which images there are, `bound` has to say first; then an image is
    known by its values, and any other than those is refused. Two such threats are equal where the folder's name and the
    pictures are. Raises `InvalidInput` for more than one shape.
    """

    shape: ClassVar[str] = "within-masks"

    patch: Patches
    folder: str
    sha256: str = ""  # of all pictures, once it is known which these are
    _masks: Mapping[bytes, str] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_name(self.folder)
        if not self.is_one_shape(self.patch):
            raise InvalidInput(f"patch in a region is {self.patch}; give one shape, such as 5x5 or disc:7")

    @property
    def where(self) -> str:
        return f"{self.folder}/"

    @property
    def is_bound(self) -> bool:
        """Tell whether it is known which picture belongs to which image."""
        return self._masks is not None

    def regions(self, x: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B H W"]:
        if self._masks is None:
            raise InvalidInput(
                f"patch {self} names a picture for each image, and here nobody says which image is which; use it where "
                "a dataset is named, or call robustpatch.threats.bound(threat, images) before"
            )
        known = [self._masks.get(_key(image)) for image in x]
        if None in known:
            raise InvalidInput(f"patch {self} has no picture for an image that is none of the dataset's; leave it out")
        found = [as_tensor(unpack(one)) for one in known if one is not None]
        return torch.stack(found).to(x.device) if found else torch.zeros_like(x[:, 0], dtype=torch.bool)

    def to_dict(self) -> dict[str, Any]:
        kept = {"patch": self.patch.to_dict(), "folder": self.folder, "sha256": self.sha256}
        return {"shape": self.shape, **kept}


def bound(threat: Threat, images: ImageSet, total: int | None = None) -> Threat:
    """The threat, and where it names a folder of pictures, with those of the first `total` images (None: of all) read.

    Raises `InvalidInput` where the images have no names, or a picture is missing, no black-and-white one, or of another
    size than the images, and for two images of the same values with different pictures.
    """
    masks: dict[str, dict[bytes, str]] = {}
    found: list[Patches] = []
    for one in threat.threats:
        if isinstance(one, WithinMasks) and not one.is_bound:
            own = masks.get(one.folder) or _masks_of(one, images, len(images) if total is None else total)
            masks[one.folder] = own
            digest = sha256(b"".join(key + own[key].encode() for key in sorted(own))).hexdigest()
            one = WithinMasks(one.patch, one.folder, digest, own)
        found.append(one)
    return threat if not masks else found[0] if len(found) == 1 else AnyOf(found)


def _masks_of(threat: WithinMasks, images: ImageSet, total: int) -> dict[bytes, str]:
    names = images.file_names(total)
    if not names:
        raise InvalidInput(
            f"patch {threat} names a picture for each image's file, but the images of {images.name} have no names; use "
            "--dataset folder, or one picture for all images, as in 5x5 in region.png"
        )
    size, found, first = images.image_shape[1:], dict[bytes, str](), dict[bytes, str]()
    for start in range(0, total, _AT_ONCE):
        some = range(start, min(start + _AT_ONCE, total))
        for i, image in zip(some, images.batch(some)[0], strict=True):
            path = Path(threat.folder) / PurePosixPath(names[i]).with_suffix(".png")
            if not path.is_file():
                raise InvalidInput(f"patch {threat} has no picture {one_line(path, 200)!r} for image {i}; make one")
            allowed = black_and_white(str(path))
            if allowed.shape != size:
                raise InvalidInput(
                    f"picture {one_line(path, 200)!r} is {allowed.shape[0]}x{allowed.shape[1]} pixels, and the images "
                    f"are {size[0]}x{size[1]}; give one of the images' size"
                )
            key, text = _key(image), pack(allowed)
            if found.setdefault(key, text) != text:
                raise InvalidInput(
                    f"images {first[key]} and {names[i]} are the same, and their pictures in {threat.where} are not; "
                    "give both the same, or leave one out"
                )
            first.setdefault(key, names[i])
    return found


def _key(image: Float[Tensor, "C H W"]) -> bytes:
    return sha256(image.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).digest()

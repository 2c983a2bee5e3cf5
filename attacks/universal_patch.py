"""A patch that can be printed: its content, the variation of its prints, and the predictions that they change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from attacks.base import content_hash, require
from attacks.pasting import crop, paste
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.isolation import predict
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import replace_file
from robustpatch.threats.rectangle import PatchThreat

AS_IT_IS = torch.tensor([[0.0, 1.0, 0.0]])  # the pose of a patch put down unchanged
_KEY = "robustpatch"  # of the PNG's text chunk


@dataclass(frozen=True)
class Poses:
    """The variation of a printed patch within its rectangle: turned by at most `rotation` degrees either way, scaled by
    `scale[0]` to `scale[1]` ≤ 1, with at most `brightness` added or taken away. All zero, and scale 1: as it is.
    """

    rotation: float = 10.0
    scale: tuple[float, float] = (0.9, 1.0)
    brightness: float = 0.1

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 <= self.rotation <= 180, "rotation", self.rotation, "in [0, 180] degrees")
        require(0 < low <= high <= 1, "scale", self.scale, "two numbers in (0, 1], the smaller one first")
        require(0 <= self.brightness <= 1, "brightness", self.brightness, "in [0, 1]")

    def draw(self, number: int, generator: torch.Generator) -> Float[Tensor, "P 3"]:
        """Angles in degrees, scales and brightnesses, uniform and independent."""
        chance = torch.rand(number, 3, generator=generator)
        low, high = self.scale
        ends = torch.tensor([[-self.rotation, low, -self.brightness], [self.rotation, high, self.brightness]])
        return ends[0] + (ends[1] - ends[0]) * chance


@dataclass(frozen=True, eq=False, repr=False)
class UniversalPatch:
    """A patch that can be printed: `content` [C,h,w] in [0, 1], the class it was trained to bring about (None: any
    other than the true one), and the poses it was trained for. `evaluations`: what training cost, all images together.
    """

    content: Float[Tensor, "C h w"]
    target: int | None = None
    poses: Poses = field(default_factory=Poses)
    evaluations: int = 0

    def __repr__(self) -> str:
        """Its content by hash, which tells runs with one patch from those with another."""
        return f"UniversalPatch({content_hash(self.content)}, target={self.target}, poses={self.poses})"

    def save(self, path: str | Path) -> None:
        """Write an 8-bit PNG, grey or RGB, with target and poses in a text chunk. `load` gives back the same content:
        trained patches have 8 bits; any other is rounded.

        Raises `InvalidInput` for other than one or three channels.
        """
        if len(self.content) not in (1, 3):
            raise InvalidInput(f"the patch has {len(self.content)} channels; a PNG holds 1 (grey) or 3 (RGB)")
        values = (self.content.detach().cpu().float() * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        about = {"target": self.target, "rotation": self.poses.rotation, "scale": self.poses.scale}
        info = PngInfo()
        info.add_text(_KEY, json.dumps({**about, "brightness": self.poses.brightness, "evaluations": self.evaluations}))
        content = BytesIO()
        Image.fromarray(values[:, :, 0] if len(self.content) == 1 else values).save(content, "PNG", pnginfo=info)
        replace_file(path, content.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> UniversalPatch:
        """The patch in a PNG: one that `save` wrote, or any other, grey or colour, as a patch without a target.

        Raises `InvalidInput` where there is no such image.
        """
        try:
            with Image.open(path, formats=["PNG"]) as image:
                about = read_object(getattr(image, "text", {}).get(_KEY, "{}"))
                values = np.array(image if image.mode == "L" else image.convert("RGB"))
        except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidInput(
                f"patch {path} cannot be read as a PNG ({one_line(error, 200)}); save it with UniversalPatch.save"
            ) from error
        content = torch.from_numpy(values.reshape(*values.shape[:2], -1)).permute(2, 0, 1).float() / 255
        poses = Poses(float(about["rotation"]), tuple(about["scale"]), float(about["brightness"])) if about else Poses()
        return cls(content, about.get("target"), poses, about.get("evaluations", 0))

    def apply(
        self,
        x: Float[Tensor, "P C H W"],
        corners: Int[Tensor, "P count 2"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "P C H W"]:
        """The images with the patch at these corners (row, column): in random poses, or as it is without a generator.

        Nothing changes outside the rectangles of the patch's size, and all values lie in [0, 1]. Raises `InvalidInput`.
        """
        threat = PatchThreat(self.content.shape[1], self.content.shape[2], corners.shape[1])
        threat.check_fits(*x.shape[2:])
        limit = torch.tensor([x.shape[2] - threat.height, x.shape[3] - threat.width], device=corners.device)
        if bool(((corners < 0) | (corners > limit)).any()):
            raise InvalidInput(f"corners reach beyond the image; for patch {threat} they lie in 0 to {limit.tolist()}")
        self.check(x)
        pose = AS_IT_IS.expand(len(x), 3) if generator is None else self.poses.draw(len(x), generator)
        return draw(self.content.to(x), x, corners, pose.to(x))

    def check(self, x: Float[Tensor, "P C H W"]) -> None:
        """Raise `InvalidInput` for images with other channels than the patch."""
        if x.shape[1] != len(self.content):
            raise InvalidInput(f"images have {x.shape[1]} channels and the patch {len(self.content)}; make both agree")

    @torch.no_grad()
    def transfer(
        self,
        model: torch.nn.Module,
        x: Float[Tensor, "B C H W"],
        y: Int[Tensor, " B"],
        *,
        tries: int = 10,
        count: int = 1,
        generator: torch.Generator | None = None,
    ) -> Transfer:
        """Put the patch on these images at `tries` random placements and poses each, judged by `predict`.
        Chance is the `generator`'s alone; None: one of seed 0.
        """
        generator = generator or torch.Generator().manual_seed(0)
        placements = PatchThreat(self.content.shape[1], self.content.shape[2], count).placements(*x.shape[2:])
        classifier = as_classifier(model)
        right = predict(classifier, x) == y
        found = []
        for _ in range(tries):
            sites = torch.randint(len(placements), (len(x), count), generator=generator)
            found.append(predict(classifier, self.apply(x, placements[sites].to(x.device), generator=generator)))
        abstains = classifier.randomized or classifier.alerts
        return Transfer(y, right, torch.stack(found, dim=1), self.target, abstains)


@dataclass(frozen=True, eq=False)
class Transfer:
    """A patch on images at T placements each: labels, which were right without it, and the predictions with it.

    The shares are over (image, placement) pairs of images that were right: `changed`, prediction other than the label
    (`is_randomized`: abstentions and alerts, -1, left out);
    `to_target`, of images of other classes than the target, those that went there (NaN: no target). `changed_once` is
    the share of images changed at one of their placements or more. NaN where no image was right.
    """

    y: Int[Tensor, " B"]
    right: Bool[Tensor, " B"]
    prediction: Int[Tensor, "B T"]
    target: int | None
    is_randomized: bool = False

    @property
    def _moved(self) -> Bool[Tensor, "R T"]:
        return ((self.prediction != self.y[:, None]) & ((self.prediction >= 0) | (not self.is_randomized)))[self.right]

    @property
    def changed(self) -> float:
        return float(self._moved.float().mean())

    @property
    def changed_once(self) -> float:
        return float(self._moved.any(dim=1).float().mean())

    @property
    def to_target(self) -> float:
        others = self.right & (self.y != self.target)
        return (
            float((self.prediction[others] == self.target).float().mean()) if self.target is not None else float("nan")
        )


def draw(
    content: Float[Tensor, "C h w"],
    x: Float[Tensor, "P C H W"],
    corners: Int[Tensor, "P count 2"],
    pose: Float[Tensor, "P 3"],
) -> Float[Tensor, "P C H W"]:
    """Posed copies of the content within its rectangle; beside a rotated or smaller copy the image shows through."""
    from kornia.enhance import adjust_brightness
    from kornia.geometry.transform import get_rotation_matrix2d, warp_affine

    height, width = content.shape[1:]
    angle, scale, brightness = pose.unbind(dim=1)
    # A frame of one pixel around the patch, cut off again: kornia divides by size - 1, and the cover needs an outside.
    size = (height + 2, width + 2)
    middle = pose.new_tensor([(width + 1) / 2, (height + 1) / 2]).expand(len(pose), 2)
    matrix = get_rotation_matrix2d(middle, angle, scale[:, None].expand(-1, 2))
    framed = torch.nn.functional.pad(content[None], (1, 1, 1, 1), mode="replicate").expand(len(pose), -1, -1, -1)
    cover = torch.nn.functional.pad(content.new_ones(1, 1, height, width), (1, 1, 1, 1)).expand(len(pose), -1, -1, -1)
    turned = warp_affine(framed, matrix, size, padding_mode="border")[..., 1:-1, 1:-1]
    covered = warp_affine(cover, matrix, size)[..., 1:-1, 1:-1] > 0.5
    shown = adjust_brightness(turned, brightness)
    plain = ((angle == 0) & (scale == 1) & (brightness == 0))[:, None, None, None]
    shown = torch.where(plain, content, shown.clamp(0, 1))
    out = x
    for k in range(corners.shape[1]):  # one after the other: where two overlap, the last shows
        under = crop(out, corners[:, k : k + 1], (height, width))[:, 0]
        out = paste(out, corners[:, k : k + 1], torch.where(covered | plain, shown, under)[:, None])
    return out

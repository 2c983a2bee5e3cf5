"""A threat from its text, as options, recipes and pages name it, or from its dict, as files hold it."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import combinations_with_replacement, product
from math import comb
from typing import Any

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.plugins import load_plugin, plugin_names
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.bitmap import black_and_white, is_packed
from robustpatch.threats.footprints import Footprints
from robustpatch.threats.rectangle import AreaShare, PatchThreat
from robustpatch.threats.several import Several
from robustpatch.threats.stamp import Cross, Disc, Mask, Polygon, rotated
from robustpatch.threats.within import Within
from robustpatch.threats.within_each import WithinEach
from robustpatch.threats.within_masks import WithinMasks

SHAPES: list[type[Patches]] = [PatchThreat, AreaShare, Disc, Cross, Polygon, Mask, Footprints]  # a new shape: here
# or in a package of its own, by an entry point
FORMS = (
    '"5x5" or "5" (height x width in pixels), "2%" (of the area), "disc:7", "cross:9/3", "polygon:0/0;0/7;7/7", '
    '"mask:sticker.png", "3x8@0,45" (turned), "2*5x5" (two), "disc:5 & 3x3" (both), "2x10,10x2" (either), '
    '"5x5 in region.png" (only there), "5x5 in masks/" (a picture for each image), "5x5 in off:0.5" (only where the '
    "image is darker)"
)
_NO_SHAPES = (Several.shape, Within.shape, WithinEach.shape, WithinMasks.shape)  # what no patch in a region is
MOST_ALTERNATIVES = 1024
_LONGEST = 2**14  # characters of a text that is out of a file
_ANGLES = re.compile(r"@\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?(?=\s*(?:,|&|$|in\s)))*")


def parse_threat(text: str, image_size: tuple[int, int] | None = None, *, files: bool = True) -> Threat:
    """Read one threat, or several separated by commas, of which the attacker picks one ("2x10,10x2").

    - Shapes: "5x5", "5", "2x10" (height × width), "2%" (the smallest square of at least that share of the area),
      "disc:7" (diameter), "cross:9/3" (length/thickness), "polygon:0/0;0/7;7/7" (row/column), "mask:FILE" (white
      pixels of a black-and-white picture), "footprints:FILE.npz" (an array `masks` of booleans [n,H,W]).
    - Turned: "3x8@0,45,90", counterclockwise, by any one of these angles in degrees; plain numbers behind @ are angles.
    - Several at the same time: "2*5x5", "disc:5 & 3x3". Of a shape that may be turned, each is turned on its own.
    - Only where every pixel is allowed: "5x5 in region.png" (white pixels of a picture of the images' size), "5x5 in
      off:0.5" (pixels of each image that are below that in every channel), "5x5 in on:0.5" (all others), "5x5 in
      masks/" (white pixels of masks/CLASS/NAME.png for the image CLASS/NAME.jpg; see `WithinMasks`).

    `str(threat)` is the inverse. With an `image_size`, the threat `on` images of that size. Without `files`, texts that
    name a file are refused: such a text may itself be out of a file. Raises `InvalidInput`.
    """
    if not files and len(text) > _LONGEST:
        raise InvalidInput(f"patch is a text of {len(text)} characters out of a file; at most {_LONGEST} are read")
    threats: list[Patches] = []
    for alternative in _alternatives(text):
        choices = [_parse_one(part, files) for part in alternative.split("&")]
        _check_number(text, len(threats) + _product(len(each) for each in choices))
        threats += [together(parts) for parts in product(*choices)]
    threats = list(dict.fromkeys(threats))
    threat = threats[0] if len(threats) == 1 else AnyOf(threats)
    return threat if image_size is None else threat.on(*image_size)


def as_threat(threat: Threat | str, image_size: Sequence[int]) -> Threat:
    """The threat that a text means on images of that height and width; any other value unchanged."""
    return parse_threat(threat, (image_size[0], image_size[1])) if isinstance(threat, str) else threat


def as_patches(threat: Threat | str, image_size: Sequence[int]) -> Patches:
    """The same of what one attack searches. Raises `InvalidInput` for a choice of threats."""
    found = as_threat(threat, image_size)
    if not isinstance(found, Patches):
        raise InvalidInput(
            f"threat is {found}, of which an attacker picks one; attack one after the other, each of "
            "parse_threat(text).threats"
        )
    return found


def together(parts: Sequence[Patches]) -> Patches:
    """Returns all of these patches at the same time: equal shapes as one with a count, different ones as `Several`."""
    counted: Counter[Patches] = Counter()
    for part in (one for each in parts for one in _parts(each)):
        counted[part.times(1)] += part.count
    merged = [part.times(count) for part, count in counted.items()]
    return merged[0] if len(merged) == 1 else Several(merged)


def pixels_sha256(threat: Threat) -> str | None:
    """A hash of the pixels of a threat whose text may name files; None where the text alone says which pixels."""
    parts = [part for one in threat.everywhere.threats for part in _parts(one)]
    named = any(isinstance(part, Mask | Footprints | Within) for part in parts)
    named |= any(isinstance(one, WithinMasks) for one in threat.threats)
    content = json.dumps(threat.to_dict(), sort_keys=True)
    return sha256(content.encode()).hexdigest() if named else None


def threat_from_dict(value: object) -> Threat:
    """The threat whose `to_dict` a file holds; [height, width, count] of older files too. Raises `InvalidInput`."""
    if isinstance(value, list) and len(value) == 3:
        return PatchThreat.from_dict(dict(zip(("height", "width", "count"), value, strict=True)))
    if isinstance(value, dict) and isinstance(value.get("any_of"), list) and len(value) == 1:
        _check_number("any_of", len(value["any_of"]))
        return AnyOf(map(_one_from_dict, value["any_of"]))
    return _one_from_dict(value)


def _one_from_dict(value: object, inside: bool = False) -> Patches:
    """One alternative: `to_dict` writes no alternatives of alternatives, and a file of them is refused."""
    fields: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
    shape = fields.pop("shape", None)
    if shape == Several.shape and fields.keys() == {"parts"} and isinstance(fields["parts"], list) and not inside:
        return Several(_one_from_dict(part, inside=True) for part in fields["parts"])
    patch, region, name, rule = (fields.get(field) for field in ("patch", "region", "name", "rule"))
    nested = isinstance(patch, dict) and patch.get("shape") in _NO_SHAPES
    if shape == Within.shape and len(fields) == 3 and not nested and isinstance(region, str) and isinstance(name, str):
        return Within(_one_from_dict(patch, inside=True), region, name)
    if shape == WithinEach.shape and fields.keys() == {"patch", "rule"} and not nested and isinstance(rule, str):
        return WithinEach(_one_from_dict(patch, inside=True), rule)
    if shape == WithinMasks.shape and fields.keys() == {"patch", "folder", "sha256"} and not nested:
        kept = _one_from_dict(patch, inside=True), fields["folder"], fields["sha256"]
        if isinstance(kept[1], str) and isinstance(kept[2], str):
            return WithinMasks(*kept)
    kind = next((each for each in _shapes() if each.shape == shape), None)
    if kind is None:
        every = [*SHAPES, Several, Within, WithinEach, WithinMasks]
        known = ", ".join([*(each.shape for each in every), *plugin_names("shapes")])
        raise InvalidInput(
            f"threat is {one_line(value, 80)!r}; it must name its shape, one of {known}, with what belongs to it"
        )
    threat = kind.from_dict(fields)
    if isinstance(threat, Mask):
        _check_name(threat)
    return threat


def _check_name(mask: Mask) -> None:
    """Refuse a mask that a file calls by the text of another shape."""
    if mask.name.startswith("mask:") or not mask.name:
        return
    known = _parse_one(mask.name, False) if "@" in mask.name and "mask:" not in mask.name else []
    if known != [mask.times(1)]:
        raise InvalidInput(f"threat is a mask named {one_line(mask.name, 60)!r}, but its pixels are not those of one")


def _alternatives(text: str) -> list[str]:
    """The parts between commas, but for commas of lists of angles."""
    angles = [match.span() for match in _ANGLES.finditer(text)]
    ends = [at for at, one in enumerate(text) if one == "," and not any(a <= at < b for a, b in angles)]
    return [text[a:b] for a, b in zip([0, *(at + 1 for at in ends)], [*ends, len(text)], strict=True)]


def _parse_one(text: str, files: bool) -> list[Patches]:
    """The alternatives of one part: one, or as many as a turned shape has."""
    shape, _, region = " ".join(text.split()).partition(" in ")
    counted = re.fullmatch(r"(\d{1,9})\s*\*\s*(.+)", shape)
    count, shape = (int(counted[1]), counted[2]) if counted else (1, shape)
    base, _, angles = shape.partition("@")
    patch = _read(base.strip(), text, files)
    turned = [patch]
    if angles:
        if not re.fullmatch(r"\s*\d{1,9}(\.\d{1,4})?(\s*,\s*\d{1,9}(\.\d{1,4})?)*\s*", angles):
            raise InvalidInput(f"patch {text.strip()!r} is turned by {angles!r}; give degrees, as in @0,45,90")
        turned = list(dict.fromkeys(rotated(patch, float(angle)) for angle in angles.split(",")))
    _check_number(text, comb(len(turned) + count - 1, count) if len(turned) > 1 else 1)
    if count < 1:
        raise InvalidInput(f"patch count is {count}; it must be a whole number of at least 1")
    found: list[Patches]
    if len(turned) == 1:
        found = [turned[0].times(count)]
    else:
        found = [together(parts) for parts in combinations_with_replacement(turned, count)]
    if not region:
        return found
    if WithinEach.is_rule(region):
        return [together([WithinEach(one, region.lower()) for one in _parts(each)]) for each in found]
    if is_packed(region):
        return [together([Within(one, region) for one in _parts(each)]) for each in found]
    _check_file(region, files)
    if region.endswith(("/", os.sep)) or os.path.isdir(region):
        folder = region.rstrip("/" + os.sep) or region
        return [together([WithinMasks(one, folder) for one in _parts(each)]) for each in found]
    allowed = black_and_white(region)
    return [together([Within.of(one, allowed, region) for one in _parts(each)]) for each in found]


def _check_file(name: str, files: bool) -> None:
    if not files:
        raise InvalidInput(
            f"patch names the file {one_line(name, 200)!r}, which is not read here; name a shape by its size"
        )


def _read(base: str, text: str, files: bool) -> Patches:
    kind, _, place = base.partition(":")
    if kind.lower() in (Mask.shape, Footprints.shape) and not is_packed(place):
        _check_file(place, files)
    plain = re.sub(r"\s*([x%])\s*", r"\1", base, flags=re.IGNORECASE).lower() if ":" not in base else base
    for shape in _shapes():
        found = shape.read(plain)
        if found is not None:
            return found
    raise InvalidInput(f"patch is {one_line(text.strip(), 200)!r}, which is no patch; use {FORMS}")


def _shapes() -> Iterator[type[Patches]]:
    """All shapes; those of other packages are imported only where none of this one is meant."""
    yield from SHAPES
    for name in plugin_names("shapes"):
        yield load_plugin("shapes", name)  # type: ignore[misc]  # a class, by its entry point


def _parts(patch: Patches) -> Iterator[Patches]:
    yield from patch.parts if isinstance(patch, Several) else (patch,)


def _product(numbers: Iterator[int]) -> int:
    found = 1
    for number in numbers:
        found *= number
    return found


def _check_number(text: str, number: int) -> None:
    if number > MOST_ALTERNATIVES:
        raise InvalidInput(
            f"patch {one_line(text.strip(), 80)!r} has {number} alternatives; take fewer angles or patches, for at "
            f"most {MOST_ALTERNATIVES}"
        )

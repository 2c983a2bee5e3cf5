"""A threat from its text, as options, recipes and pages name it, or from its dict, as files hold it."""

from __future__ import annotations

import re
from typing import Any

from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Threat
from robustpatch.threats.rectangle import AreaShare, PatchThreat

SHAPES: tuple[type[Patches], ...] = (PatchThreat, AreaShare)  # a new shape is a class, and an entry here
FORMS = '"5x5" or "5" (height x width in pixels), "2%" (of the area), "2*5x5" (two patches), "2x10,10x2" (either)'


def parse_threat(text: str, image_size: tuple[int, int] | None = None) -> Threat:
    """Read "5x5", "5", "2x10" (height × width), "2%" (the smallest square of at least that share of the area), "2*5x5"
    (two patches), or several separated by commas ("2x10,10x2": one or the other). `str(threat)` is the inverse.

    With an `image_size`, the threat `on` images of that size. Raises `InvalidInput`.
    """
    threats = list(dict.fromkeys(map(_parse_one, text.split(","))))
    threat = threats[0] if len(threats) == 1 else AnyOf(threats)
    return threat if image_size is None else threat.on(*image_size)


def threat_from_dict(value: object) -> Threat:
    """The threat whose `to_dict` a file holds; [height, width, count] of older files too. Raises `InvalidInput`."""
    if isinstance(value, list) and len(value) == 3:
        return PatchThreat.from_dict(dict(zip(("height", "width", "count"), value, strict=True)))
    if isinstance(value, dict) and isinstance(value.get("any_of"), list) and len(value) == 1:
        return AnyOf(map(_one_from_dict, value["any_of"]))
    return _one_from_dict(value)


def _one_from_dict(value: object) -> Patches:
    """One alternative: `to_dict` writes no alternatives of alternatives, and a file of them is refused."""
    shapes = {shape.shape: shape for shape in SHAPES}
    fields: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
    shape = fields.pop("shape", None)
    if not isinstance(shape, str) or shape not in shapes:
        raise InvalidInput(f"threat is {str(value)[:80]!r}; it must name its shape, one of {', '.join(shapes)}")
    return shapes[shape].from_dict(fields)


def _parse_one(text: str) -> Patches:
    plain = re.sub(r"\s*([*x%])\s*", r"\1", text.strip().lower())
    for shape in SHAPES:
        found = shape.read(plain)
        if found is not None:
            return found
    raise InvalidInput(f"patch is {text!r}, which is no patch; use {FORMS}")

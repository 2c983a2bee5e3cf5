"""Threats: the pixels that an attacker may change."""

from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Placements, Threat
from robustpatch.threats.footprints import Footprints
from robustpatch.threats.growing import Growing, Scaled, discs, parse_growing, squares
from robustpatch.threats.parse import parse_threat, threat_from_dict
from robustpatch.threats.rectangle import AreaShare, PatchThreat, Rectangles
from robustpatch.threats.several import Several
from robustpatch.threats.stamp import Cross, Disc, Mask, Polygon, Stamp, rotated
from robustpatch.threats.within import Within
from robustpatch.threats.within_each import WithinEach
from robustpatch.threats.within_masks import WithinMasks, bound

__all__ = [
    "AnyOf",
    "AreaShare",
    "Cross",
    "Disc",
    "Footprints",
    "Growing",
    "Mask",
    "PatchThreat",
    "Patches",
    "Placements",
    "Polygon",
    "Rectangles",
    "Scaled",
    "Several",
    "Stamp",
    "Threat",
    "Within",
    "WithinEach",
    "WithinMasks",
    "bound",
    "discs",
    "parse_growing",
    "parse_threat",
    "rotated",
    "squares",
    "threat_from_dict",
]

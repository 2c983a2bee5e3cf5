"""Threats: the pixels that an attacker may change."""

from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Placements, Threat
from robustpatch.threats.footprints import Footprints
from robustpatch.threats.parse import parse_threat, threat_from_dict
from robustpatch.threats.rectangle import AreaShare, PatchThreat, Rectangles
from robustpatch.threats.several import Several
from robustpatch.threats.stamp import Cross, Disc, Mask, Polygon, rotated
from robustpatch.threats.within import Within

__all__ = [
    "AnyOf",
    "AreaShare",
    "Cross",
    "Disc",
    "Footprints",
    "Mask",
    "PatchThreat",
    "Patches",
    "Placements",
    "Polygon",
    "Rectangles",
    "Several",
    "Threat",
    "Within",
    "parse_threat",
    "rotated",
    "threat_from_dict",
]

"""Threats: the pixels that an attacker may change."""

from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.base import Patches, Placements, Threat
from robustpatch.threats.parse import parse_threat, threat_from_dict
from robustpatch.threats.rectangle import AreaShare, PatchThreat, Rectangles

__all__ = [
    "AnyOf",
    "AreaShare",
    "PatchThreat",
    "Patches",
    "Placements",
    "Rectangles",
    "Threat",
    "parse_threat",
    "threat_from_dict",
]

"""How each kind of classifier looks to a search for patches; one file a defense."""

from attacks.surfaces import patchcleanser, patchguard, smoothed
from attacks.surfaces.base import Attacked, OpenPlacements, Surface, View, surface_of, whole_view

__all__ = [
    "Attacked",
    "OpenPlacements",
    "Surface",
    "View",
    "patchcleanser",
    "patchguard",
    "smoothed",
    "surface_of",
    "whole_view",
]

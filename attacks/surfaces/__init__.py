"""Surfaces: classifiers as searches for patches see them; one file a defense."""

from attacks.surfaces import minority_reports, patchcleanser, patchguard, smoothed
from attacks.surfaces.base import Attacked, OpenPlacements, Surface, surface_of
from attacks.surfaces.views import View, WholeView, whole_view, whole_view_class

__all__ = [
    "Attacked",
    "OpenPlacements",
    "Surface",
    "View",
    "WholeView",
    "minority_reports",
    "patchcleanser",
    "patchguard",
    "smoothed",
    "surface_of",
    "whole_view",
    "whole_view_class",
]

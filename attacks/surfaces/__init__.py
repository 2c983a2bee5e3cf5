"""Surfaces: classifiers as searches for patches see them; one file a defense, which is found here by lying here."""

from importlib import import_module
from pkgutil import iter_modules

from attacks.surfaces.base import Attacked, OpenPlacements, Surface, surface_of
from attacks.surfaces.views import View, WholeView, whole_view, whole_view_class

__all__ = ["Attacked", "OpenPlacements", "Surface", "View", "WholeView", "surface_of", "whole_view", "whole_view_class"]

for _module in iter_modules(__path__):  # each names the classifiers that it is for to `surface_of`
    import_module(f"{__name__}.{_module.name}")

"""The other defenses, one a file: certified and attacked by the same evaluator as smoothing."""

from __future__ import annotations

from importlib import import_module

from robustpatch.defenses.base import Defended, Defense, read_options
from robustpatch.errors import InvalidInput
from robustpatch.plugins import load_plugin, plugin_names

__all__ = ["Defended", "Defense", "known_defenses", "parse_defense"]

_HOME: dict[str, str] = {  # name -> MODULE:CLASS, imported when asked for; others have an entry point
    "ibp": "robustpatch.defenses.ibp:IBP",
    "patchguard": "robustpatch.defenses.patchguard:PatchGuard",
    "patchguard-alerts": "robustpatch.defenses.patchguard_alerts:PatchGuardAlerts",
    "patchcleanser": "robustpatch.defenses.patchcleanser:DoubleMasking",
    "minority-reports": "robustpatch.defenses.minority_reports:MinorityReports",
    "lgs": "robustpatch.defenses.local_gradient_smoothing:LocalGradientSmoothing",
    "watermarking": "robustpatch.defenses.watermarking:Watermarking",
}


def known_defenses() -> list[str]:
    """The names that `parse_defense` takes."""
    return sorted({*_HOME, *plugin_names("defenses")})


def parse_defense(text: str) -> Defense:
    """Read "name" or "name:option=value,…"; `str(defense)` is the inverse. Raises `InvalidInput`."""
    name, _, options = text.strip().partition(":")
    if name in _HOME:
        module, _, kind = _HOME[name].partition(":")
        return read_options(getattr(import_module(module), kind), options)
    found = load_plugin("defenses", name)
    if found is None:
        raise InvalidInput(f"defense is {text!r}; known are {', '.join(known_defenses())}")
    return read_options(found, options)

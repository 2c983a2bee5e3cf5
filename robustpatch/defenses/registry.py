"""Defenses by name: what `--defense`, a recipe and a checkpoint mean."""

from __future__ import annotations

from importlib import import_module

from robustpatch.defenses.base import Defense, read_options
from robustpatch.errors import InvalidInput
from robustpatch.plugins import load_plugin, plugin_names

# name -> MODULE:CLASS, imported when it is asked for; other packages' have an entry point (`robustpatch.plugins`)
KNOWN: dict[str, str] = {
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
    return sorted({*KNOWN, *plugin_names("defenses")})


def parse_defense(text: str) -> Defense:
    """Read "name" or "name:option=value,…"; `str(defense)` is the inverse. Raises `InvalidInput`."""
    name, _, options = text.strip().partition(":")
    if name in KNOWN:
        module, _, kind = KNOWN[name].partition(":")
        return read_options(getattr(import_module(module), kind), options)
    found = load_plugin("defenses", name)
    if found is None:
        raise InvalidInput(f"defense is {text!r}; known are {', '.join(known_defenses())}")
    return read_options(found, options)

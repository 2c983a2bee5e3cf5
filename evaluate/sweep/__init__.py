"""Tables over ablation sizes, voting rules and patch sizes, from one scoring of each image."""

from evaluate.sweep.metrics import Choice, Setting, choice_by, family_and_size, settings_of
from evaluate.sweep.records import SweepRun, read_sweep
from evaluate.sweep.runner import SweepSettings, certify_scores, sweep

__all__ = [
    "Choice",
    "Setting",
    "SweepRun",
    "SweepSettings",
    "certify_scores",
    "choice_by",
    "family_and_size",
    "read_sweep",
    "settings_of",
    "sweep",
]

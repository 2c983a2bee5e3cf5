"""Attacks propose adversarial patches; `judge` decides whether they count."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attacks.art.from_art import FromART, as_module
    from attacks.art.to_art import to_art
    from attacks.attack import Attack
    from attacks.base import Outcome, PatchAttack, Proposal, judge
    from attacks.criterion import Became, Changed, Criterion, NoAlert, OutOfTopK
    from attacks.ensemble import Ensemble
    from attacks.exhaustive import ExhaustivePGD
    from attacks.lavan import LaVAN
    from attacks.occlusion import ROA, Control
    from attacks.oracle import Oracle
    from attacks.pgd import PatchPGD
    from attacks.registry import parse_attacks, quick, standard
    from attacks.sparse_rs import SparseRS
    from attacks.undefended import Undefended
    from attacks.universal import Universal, UniversalPatch, train_and_transfer, train_patch
    from attacks.votes import WorstVotes, worst_votes

__all__ = [
    "ROA",
    "Attack",
    "Became",
    "Changed",
    "Control",
    "Criterion",
    "Ensemble",
    "ExhaustivePGD",
    "FromART",
    "LaVAN",
    "NoAlert",
    "Oracle",
    "OutOfTopK",
    "Outcome",
    "PatchAttack",
    "PatchPGD",
    "Proposal",
    "SparseRS",
    "Undefended",
    "Universal",
    "UniversalPatch",
    "WorstVotes",
    "as_module",
    "judge",
    "parse_attacks",
    "quick",
    "standard",
    "to_art",
    "train_and_transfer",
    "train_patch",
    "worst_votes",
]

_HOME = {
    "art.from_art": ("FromART", "as_module"),
    "art.to_art": ("to_art",),
    "attack": ("Attack",),
    "base": ("Outcome", "PatchAttack", "Proposal", "judge"),
    "criterion": ("Became", "Changed", "Criterion", "NoAlert", "OutOfTopK"),
    "ensemble": ("Ensemble",),
    "exhaustive": ("ExhaustivePGD",),
    "lavan": ("LaVAN",),
    "occlusion": ("ROA", "Control"),
    "oracle": ("Oracle",),
    "pgd": ("PatchPGD",),
    "registry": ("parse_attacks", "quick", "standard"),
    "sparse_rs": ("SparseRS",),
    "undefended": ("Undefended",),
    "universal": ("Universal", "UniversalPatch", "train_and_transfer", "train_patch"),
    "votes": ("WorstVotes", "worst_votes"),
}


def __getattr__(name: str) -> object:
    """Names are imported when asked for, each with no more than it needs."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

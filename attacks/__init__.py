"""Attacks propose adversarial patches; `judge` decides whether they count."""

from attacks.base import Outcome, PatchAttack, Proposal, judge
from attacks.exhaustive import ExhaustivePGD
from attacks.oracle import Oracle
from attacks.pgd import PatchPGD

__all__ = ["ExhaustivePGD", "Oracle", "Outcome", "PatchAttack", "PatchPGD", "Proposal", "judge"]

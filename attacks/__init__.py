"""Attacks propose adversarial patches; `judge` decides whether they count."""

from attacks.base import Outcome, PatchAttack, Proposal, judge
from attacks.ensemble import Ensemble
from attacks.exhaustive import ExhaustivePGD
from attacks.oracle import Oracle
from attacks.pgd import PatchPGD
from attacks.votes import WorstVotes, worst_votes

__all__ = [
    "Ensemble",
    "ExhaustivePGD",
    "Oracle",
    "Outcome",
    "PatchAttack",
    "PatchPGD",
    "Proposal",
    "WorstVotes",
    "judge",
    "worst_votes",
]

"""The other defenses, one a file: certified and attacked by the same evaluator as smoothing. `registry` names them."""

from robustpatch.defenses.base import Defended, Defense
from robustpatch.defenses.registry import known_defenses, parse_defense

__all__ = ["Defended", "Defense", "known_defenses", "parse_defense"]

"""A voting rule from its text, as options, recipes and checkpoints name it."""

from __future__ import annotations

from robustpatch.errors import InvalidInput
from robustpatch.voting.rules import Threshold, TopOne, Voting
from robustpatch.voting.scored import ClippedLogits, ClippedTanh, SigmoidThreshold, SummedScores


def parse_voting(text: str, guard: float | None = None) -> Voting:
    """Read "threshold:0.3", "top1", "scores", "tanh:0.05:1", "relu:16" or "sigmoid:0.5"; `str(voting)` is the inverse.

    Numbers can be left out. Raises `InvalidInput`.
    """
    rules: dict[str, tuple[type[Voting], int]] = {
        "threshold": (Threshold, 1),
        "top1": (TopOne, 0),
        "scores": (SummedScores, 0),
        "tanh": (ClippedTanh, 2),
        "relu": (ClippedLogits, 1),
        "sigmoid": (SigmoidThreshold, 1),
    }
    kind, *values = text.strip().lower().split(":")
    try:
        if kind in rules and len(values) <= rules[kind][1]:
            return rules[kind][0](*map(float, values), guard=guard)  # type: ignore[call-arg]  # each is a dataclass
    except ValueError as error:
        if isinstance(error, InvalidInput):
            raise
    raise InvalidInput(
        f'voting is {text!r}; use "threshold:0.3", "top1", "scores", "tanh:0.05:1", "relu:16" or "sigmoid:0.5"'
    )

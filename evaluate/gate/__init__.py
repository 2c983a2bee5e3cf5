"""A gate on the way of a model: floors that a run has to reach, and a stored run that it must not fall below."""

from evaluate.gate.answers import Answers
from evaluate.gate.judge import Line, judge
from evaluate.gate.rules import Gate, read_gate

__all__ = ["Answers", "Gate", "Line", "judge", "read_gate"]

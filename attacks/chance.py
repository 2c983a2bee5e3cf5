"""Whether chance has a part in what a model answers: only where the model declares it."""

from __future__ import annotations

import torch

from robustpatch.errors import InvalidInput

ERRORS = ("prediction_error", "judge_error")


def is_randomized(model: object) -> bool:
    """Whether the model declares `randomized = True`, as `RandomizedClassifier` does. Nothing else is a declaration:
    not a `referee`, not a `prediction_error`.

    What it buys: abstentions under a patch are no changes, its `referee()` may judge in its place, and its errors are
    added to what the confidence of its certificates allows. Raises `InvalidInput` for another value than a boolean.
    """
    declared = getattr(model, "randomized", False)
    if not isinstance(declared, bool):
        raise InvalidInput(
            f"randomized is {declared!r} of {type(model).__name__}; declare True where predictions depend on "
            "chance, or False"
        )
    return declared


def errors(model: torch.nn.Module) -> tuple[float, float]:
    """The chances that `predict` and a prediction of the `referee` are wrong, 0 where the model names none; 0 and 0 for
    a model that does not declare to be randomized. Raises `InvalidInput` where one is no probability in [0, 1).
    """
    if not is_randomized(model):
        return 0.0, 0.0
    found = []
    for name in ERRORS:
        value = getattr(model, name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise InvalidInput(f"{name} is {value!r} of {type(model).__name__}; give a probability in [0, 1)")
        found.append(float(value))
    return found[0], found[1]

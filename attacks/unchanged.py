"""Refuse attacks that change the model: what is judged must be the model that a run names."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from attacks.base import judge_of
from attacks.gradient import NotDifferentiable
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.base_check import PassedChecks
from robustpatch.classifiers.state_digest import digest_of
from robustpatch.errors import InvalidInput

_OF_TORCH = {"_modules", "_parameters", "_buffers"}  # told by the names of what is in them


class Unchanged:
    """Inside this context the model may be asked, not changed: `InvalidInput`, naming `who` changed what.

    Compared before and after are the weights, the buffers, modes, hooks, parts and attributes of each module, and what
    the user's classes define. Not private tables and lists, nor cached properties: these are caches; nor what the
    model's own code changes when it is asked, such as a counter.
    """

    def __init__(self, who: str, classifier: Classifier, x: Tensor) -> None:
        self._who, self._classifier, self._model, self._x = who, classifier, classifier.given, x

    def __enter__(self) -> None:
        self._before = _told(self._model)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and not issubclass(kind, NotDifferentiable):  # after which an ensemble goes on
            return
        after = _told(self._model)
        changed = _differing(self._before, after)
        if not changed:
            return
        with suppress(Exception):  # of a model that an attack left in pieces
            _ask(self._classifier, self._x)
        own = _differing(after, _told(self._model))
        left = [name for name in changed if name not in own]
        if left:
            raise InvalidInput(
                f"attack {self._who} changed {', '.join(left[:3])} of {type(self._model).__name__}: what follows would "
                "be judged on another model; let it change a copy (copy.deepcopy), or put back what it changed (or, "
                "where the model itself changed that as it was asked, keep it in a private list or table)"
            )


def _differing(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = [name for name in before if name not in after or before[name] != after[name]]
    return names + [name for name in after if name not in before]


def _told(model: nn.Module) -> dict[str, object]:
    """What is compared, by name."""
    told: dict[str, object] = {}
    classes: dict[str, type] = {}
    with torch.no_grad():
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            told[name] = digest_of(tensor)
        for path, module in model.named_modules():
            told[f"{path or 'model'} (a {type(module).__name__})"] = id(module), module
            prefix = f"{path}." if path else ""
            told |= {
                prefix + key: digest_of(value) for key, value in vars(module).items() if _counts(module, key, value)
            }
            classes |= {f"class {kind.__qualname__}": kind for kind in type(module).__mro__}
    return told | {name: digest_of(kind) for name, kind in classes.items()}


def _counts(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute of a module is compared."""
    if (
        name in _OF_TORCH
        or isinstance(value, PassedChecks)
        or isinstance(getattr(type(module), name, None), cached_property)
    ):
        return False
    if name in vars(_PLAIN) or not name.startswith("_"):
        return True
    return isinstance(value, str | bytes | bool | int | float | complex | Tensor)


_PLAIN = nn.Module()  # whose private attributes, hooks among them, every module has


def _ask(classifier: Classifier, x: Tensor) -> None:
    """Ask the classifier as evaluations do, with and without gradients, of one image and of one more than there are."""
    for images in (x[:1], torch.cat([x, x[:1]])):
        with torch.enable_grad():
            if classifier.scores_images:
                classifier(images.clone())
        with torch.no_grad():
            for one in (classifier, judge_of(classifier)):
                one.predict(images.clone())

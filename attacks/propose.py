"""Run an attack on copies, check the form of what it proposes, and refuse one that changes the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attacks.base import PatchAttack, Proposal, judge_of
from attacks.criterion import Criterion
from attacks.gradient import NotDifferentiable
from attacks.image_by_image import image_by_image
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.base_check import PassedChecks
from robustpatch.classifiers.isolation import own_copy
from robustpatch.classifiers.state_digest import digest_of
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

_OF_TORCH = {"_modules", "_parameters", "_buffers"}  # compared by the names of what is in them
_PLAIN = nn.Module()  # whose private attributes, hooks among them, every module has


def propose(
    attack: PatchAttack,
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"] | Criterion,
    threat: Patches,
    *,
    generator: torch.Generator,
) -> Proposal:
    """Return what the attack proposes for copies of these images and labels; the proposal's tensors are copies too.

    An attack that writes to what it is given, or later to what it returned, changes nothing here. What it claims is
    for `judge` to decide. Raises `InvalidInput` for what is no proposal for these images, in their type, and for an
    attack that changes the model.
    """
    if threat.varies:
        attack.check(threat)
        return image_by_image(partial(propose, attack), model, x, y, threat, generator)
    classifier = as_classifier(model)
    asked = y.to(x.device) if isinstance(y, Criterion) else y.clone()
    with _unchanged(attack.name, classifier, x):
        found = attack(classifier.given, x.clone(), asked, threat, generator=generator)
    if not isinstance(found, Proposal):
        raise InvalidInput(f"attack {attack.name} returned a {type(found).__name__}; return an attacks.Proposal")
    wanted = {"x_adv": tuple(x.shape), "corners": (len(x), threat.count, 2), "evaluations": (len(x),)}
    wanted["visited"] = wanted["evaluations"]
    for name, shape in wanted.items():
        value = getattr(found, name)
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        right = {"x_adv": value.dtype == x.dtype, "visited": value.is_floating_point()}.get(name, whole)
        if tuple(value.shape) != shape or not right:
            kind = {"x_adv": str(x.dtype), "visited": "floats"}.get(name, "whole numbers")
            raise InvalidInput(
                f"attack {attack.name} proposed {name} of {value.dtype} {tuple(value.shape)}; {kind} of shape {shape} "
                "are needed"
            )
    if found.by is not None and len(found.by) != len(x):
        raise InvalidInput(f"attack {attack.name} named {len(found.by)} members in by; one for each image is needed")
    if found.broken is not None and (found.broken.dtype != torch.bool or found.broken.shape != (len(x),)):
        raise InvalidInput(f"attack {attack.name} proposed broken that is not one boolean for each image")
    copied = own_copy(found, Proposal)
    return replace(copied, **{name: getattr(copied, name).to(x.device) for name in wanted})


@contextmanager
def _unchanged(attack: str, classifier: Classifier, x: Tensor) -> Iterator[None]:
    """Within it the model may be asked, not changed: `InvalidInput`, naming the attack, says what changed.

    Compared before and after are the weights, the buffers, modes, hooks, parts and attributes of each module, and what
    the user's classes define. Not private tables and lists, nor cached properties: these are caches; nor what the
    model's own code changes when it is asked, such as a counter.
    """
    model = classifier.given
    before = _state(model)
    error: NotDifferentiable | None = None
    try:
        yield
    except NotDifferentiable as refusal:  # after which an ensemble goes on
        error = refusal
    after = _state(model)
    changed = _differing(before, after)
    if changed:
        with suppress(Exception):  # of a model that an attack left in pieces
            _ask(classifier, x)
        own_doing = _differing(after, _state(model))
        left = [name for name in changed if name not in own_doing]
        if left:
            raise InvalidInput(
                f"attack {attack} changed {', '.join(left[:3])} of {type(model).__name__}: what follows would be "
                "judged on another model; let it change a copy (copy.deepcopy), or put back what it changed (or, where "
                "the model itself changed that as it was asked, keep it in a private list or table)"
            )
    if error is not None:
        raise error


def _differing(before: dict[str, object], after: dict[str, object]) -> list[str]:
    names = [name for name in before if name not in after or before[name] != after[name]]
    return names + [name for name in after if name not in before]


def _state(model: nn.Module) -> dict[str, object]:
    """All that is compared, by name."""
    state: dict[str, object] = {}
    classes: dict[str, type] = {}
    with torch.no_grad():
        for name, tensor in chain(model.named_parameters(), model.named_buffers()):
            state[name] = digest_of(tensor)
        for path, module in model.named_modules():
            state[f"{path or 'model'} (a {type(module).__name__})"] = id(module), module
            prefix = f"{path}." if path else ""
            state |= {
                prefix + key: digest_of(value) for key, value in vars(module).items() if _compared(module, key, value)
            }
            classes |= {f"class {kind.__qualname__}": kind for kind in type(module).__mro__}
    return state | {name: digest_of(kind) for name, kind in classes.items()}


def _compared(module: nn.Module, name: str, value: Any) -> bool:
    if (
        name in _OF_TORCH
        or isinstance(value, PassedChecks)
        or isinstance(getattr(type(module), name, None), cached_property)
    ):
        return False
    if name in vars(_PLAIN) or not name.startswith("_"):
        return True
    return isinstance(value, str | bytes | bool | int | float | complex | Tensor)


def _ask(classifier: Classifier, x: Tensor) -> None:
    """Ask the classifier as evaluations do, with and without gradients, of one image and of one more than there are."""
    for images in (x[:1], torch.cat([x, x[:1]])):
        with torch.enable_grad():
            if classifier.scores_images:
                classifier(images.clone())
        with torch.no_grad():
            for one in (classifier, judge_of(classifier)):
                one.predict(images.clone())

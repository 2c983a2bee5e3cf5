"""What comes back from an attack: copies, checked; and what of it counts as a patch that was tried."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from attacks.base import Outcome, PatchAttack, Proposal, content_hash
from attacks.criterion import Criterion
from attacks.unchanged import Unchanged
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.isolation import own_copy
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Patches

LEVEL = 1 / 510  # half a grey level of 8 bits: a change below it is no change of the picture


def propose(
    attack: PatchAttack,
    model: torch.nn.Module,
    x: Float[Tensor, "B C H W"],
    y: Int[Tensor, " B"] | Criterion,
    threat: Patches,
    *,
    generator: torch.Generator,
) -> Proposal:
    """What the attack proposes for copies of these images and labels; the proposal's tensors are copies too.

    An attack that writes to what it is given, or later to what it returned, changes nothing here. What it claims is
    for `judge` to decide. Raises `InvalidInput` for what is no proposal for these images, in their type, and for an
    attack that changes the model.
    """
    classifier = as_classifier(model)
    asked = y.to(x.device) if isinstance(y, Criterion) else y.clone()
    with Unchanged(attack.name, classifier, x):
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


def visible(x: Float[Tensor, "B C H W"], x_adv: Float[Tensor, "B C H W"]) -> Bool[Tensor, " B"]:
    """Whether some value of an image is another by half a grey level of 8 bits or more: less is no patch."""
    return ((x_adv.float() - x.float()).abs() >= LEVEL).flatten(1).any(dim=1)


def patches(x: Float[Tensor, "B C H W"], proposal: Proposal, outcome: Outcome) -> list[frozenset[str]]:
    """The patched images, by hash, that `judge` was asked about: of each image the proposal, where it lies inside the
    threat and in range and shows a patch at all (`visible`); an empty set where it does not.
    """
    real = outcome.contained & outcome.in_range & visible(x, proposal.x_adv)
    return [frozenset([content_hash(proposal.x_adv[i])] if real[i] else []) for i in range(len(x))]

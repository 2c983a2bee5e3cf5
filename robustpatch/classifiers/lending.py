"""Tensors that are lent to code of others: models, certifiers and attacks get copies, so that they cannot change ours.

A model that normalises its images in place, or a certifier that ablates them in place, computes a function of what it
is given, and that function is what is certified and attacked. Were it given the very images of the evaluation, all that
follows would be asked about what it left of them.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar

import torch
from torch import Tensor, nn

from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.foreign import checked
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

D = TypeVar("D")


def lent(x: Tensor) -> Tensor:
    """A copy of the tensor, to be given to code that may write to it. Gradients pass through to the original.

    Code that writes to a copy may do so where gradients are wanted as well: the copy is no leaf of the graph.
    """
    return x.clone()


def own(given: D, kind: type[D]) -> D:
    """A `kind` with the same content, its tensors copied and cut from any graph: who made it may go on to write to
    theirs. Of an object of a class derived from `kind`, which may be made otherwise or say something else, what `kind`
    has.
    """
    held = {field.name: getattr(given, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: one.detach().clone() if isinstance(one, Tensor) else one for name, one in held.items()})


def classes_of(found: object, images: Tensor, who: str) -> Tensor:
    """The classes int64 [B] that foreign code returned for images [B,C,H,W], as a copy on their device.

    Raises `InvalidInput` for anything but one whole number for each image: other shapes would be broadcast.
    """
    if not isinstance(found, Tensor):
        raise InvalidInput(f"{who} returned a {type(found).__name__}; return a tensor of classes, whole numbers [B]")
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    if not whole or found.shape != images.shape[:1]:
        raise InvalidInput(
            f"{who} returned {tuple(found.shape)} of {found.dtype} for {len(images)} images; return one class for "
            f"each, whole numbers [{len(images)}]"
        )
    return found.detach().to(images.device, torch.int64, copy=True)


@torch.no_grad()
def certify(model: nn.Module, x: Tensor, threat: Threat, *method: str) -> Certificate:
    """What the model's own `certify` says of a copy of the images [B,C,H,W]; the answer is a copy too.

    Raises `InvalidInput`, naming the field, for what is no certificate of these images (see `foreign.checked`), and for
    a certificate of another threat: what it says of that one is no claim about this one.
    """
    found = model.certify(lent(x), threat, *method)  # type: ignore[operator]
    if not isinstance(found, Certificate):
        raise InvalidInput(
            f"certify of {type(model).__name__} returned a {type(found).__name__}; return a robustpatch.Certificate"
        )
    if found.threat != threat:
        raise InvalidInput(
            f"certify of {type(model).__name__} was asked about {threat} and returned a certificate of {found.threat}; "
            "certify the threat that is passed, or certify no image for one that it was not built for"
        )
    classes = getattr(model, "num_classes", None)
    known = classes if isinstance(classes, int) else None
    return checked(
        own(checked(found, len(x), known), Certificate), len(x), known
    )  # as read once, for a class of theirs

"""Find out before any work is done whether attacks find the gradients that they climb."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch

from attacks.base import PatchAttack
from attacks.ensemble import Ensemble
from attacks.gradient import NotDifferentiable, check_differentiable, climbs
from attacks.undefended import Undefended
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput


def left_out(model: torch.nn.Module, images: ImageSet, attacks: Sequence[PatchAttack]) -> list[str]:
    """Return what is to be said of attacks that cannot do all they do, since the model has no gradient in the image: a
    sentence each; none where it has one, or no attack needs it.

    One gradient is asked for, of the first image. Raises `InvalidInput` for an attack that is nothing without.
    """
    device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    found, known = [], {}
    for attack in attacks:
        sentence = attack.left_out() if isinstance(attack, Ensemble) else None
        if sentence is None and not climbs(attack):
            continue
        searched = attack.bare(model) if isinstance(attack, Undefended) else model
        if type(searched) not in known:
            known[type(searched)] = _refusal(searched, images, device)
        refusal = known[type(searched)]
        if refusal is None:
            continue
        if sentence is None:
            raise InvalidInput(f"attack {attack.name} climbs gradients, but {refusal}") from refusal
        found.append(f"the model has no gradient in the image: {sentence}")
    return found


def _refusal(model: torch.nn.Module, images: ImageSet, device: torch.device) -> NotDifferentiable | None:
    try:
        check_differentiable(model, images.batch(range(1))[0].to(device))
    except NotDifferentiable as refusal:
        return refusal
    return None

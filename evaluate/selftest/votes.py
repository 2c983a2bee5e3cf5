"""The same votes on this machine: whatever the batch size, the chunk, the precision and the device; and how fast."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from evaluate.selftest.check import Check
from robustpatch.checkpoints import load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.threats.rectangle import PatchThreat

SMOOTHED = ("mnist-columns2", "mnist-blocks8")
TIMED = ("mnist-columns2", "mnist-blocks8", "mnist-patchcleanser", "mnist-ibp")
_IMAGES, _TIMED = 24, 8


@torch.no_grad()
def check_votes(device: str) -> list[Check]:
    """Votes of shipped classifiers on this device, in parts and in bfloat16, against the CPU's in float32, all at once.
    A vote within the guard of turning over may differ.
    """
    x, _ = load_images("mnist-sample").batch(range(_IMAGES))
    found = []
    for name in SMOOTHED:
        model = load_checkpoint(name).smoothed.eval()
        truth = model.votes(x)
        for what, other, batch in _variants(model, device):
            cast = [other.votes(some.to(device)) for some in x.split(batch)]
            votes, close = (torch.cat([getattr(one, part).cpu() for one in cast]) for part in ("cast", "close"))
            near = truth.close | close
            wrong, least = int((truth.cast != votes)[~near].sum()), float((~near).float().mean())
            told = f"{wrong} of {votes.numel()} votes differ, {int(near.sum())} within the guard"
            found.append(Check(f"votes of {name}, {what}", wrong == 0 and least > 0.5, told))
    return found


def _variants(model: SmoothedClassifier, device: str) -> Iterator[tuple[str, SmoothedClassifier, int]]:
    own = copy.deepcopy(model).to(device)
    yield f"on {device}", own, _IMAGES
    for batch in (1, 7):
        yield f"{batch} at a time", own, batch
    for chunk in (1, 5, 1_000):
        other = copy.deepcopy(own)
        other.chunk = chunk
        yield f"in chunks of {chunk}", other, _IMAGES
    yield "in bfloat16", copy.deepcopy(model).to(device, torch.bfloat16), _IMAGES


@torch.no_grad()
def check_certificates(device: str) -> list[Check]:
    """Certificates of shipped classifiers of every kind, on this device as on the CPU; and the time that they take."""
    x, _ = load_images("mnist-sample").batch(range(_TIMED))
    threat, found = PatchThreat(5, 5), []
    for name in TIMED:
        model = load_checkpoint(name).model.eval()
        truth = _certified(model, x, threat)
        if device != "cpu":
            model = model.to(device)
            _certified(model, x.to(device), threat)  # what is made once, such as kernels, is not timed
        started = time.monotonic()
        own = _certified(model, x.to(device), threat)
        seconds = time.monotonic() - started
        told = f"{int(own.sum())} of {_TIMED} certified, {_TIMED / max(seconds, 1e-9):,.1f} images/s"
        found.append(Check(f"certificates of {name}", bool((own == truth).all()), told))
    return found


def _certified(model: nn.Module, x: Tensor, threat: PatchThreat) -> Tensor:
    classifier = as_classifier(model)
    assert isinstance(classifier, CertifiedClassifier)
    return classifier.certify(x, threat).certified.cpu()

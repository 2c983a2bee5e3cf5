"""Checks that a certifier does not contradict itself: each a function that yields findings.

A check is given the certifier, images, the threat and what `certify` said of the images. It must not change the
certifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from math import inf, nan

import torch
from torch import Tensor, nn

from evaluate.audit.certifier import AuditedCertifier, Claim, Refused
from evaluate.audit.finding import Finding, Severity
from robustpatch.threats.base import Patches
from robustpatch.threats.rectangle import PatchThreat

Check = Callable[[AuditedCertifier, Tensor, Patches, Claim], Iterator[Finding]]


def agreement(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """`predict` says of each image what `certify` says."""
    predicted = subject.predict(x)
    differs = predicted != claim.prediction
    if subject.forgiving:  # an alert, or an abstention by chance, contradicts nothing
        differs &= (predicted >= 0) & (claim.prediction >= 0)
    for i in _rows(differs):
        sentence = f"predict says {int(predicted[i])} of an image that certify says {int(claim.prediction[i])} of"
        yield _finding("agreement", sentence, x[i : i + 1], claim.certified[i])


def companions(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """Batches of 1, 2 and 3 images, and the whole batch in reverse, give what the whole batch gave."""
    whole = subject.predict(x)
    for what, order, size in (("1", 1, 1), ("2", 1, 2), ("3", 1, 3), ("all, in reverse", -1, len(x))):
        turned = list(range(len(x)))[::order]
        batches = x[turned].split(size)
        predicted = torch.cat([subject.predict(some) for some in batches])[turned]
        told = [subject.certify(some, threat) for some in batches]
        said, certified = (torch.cat([getattr(one, name) for one in told])[turned] for name in vars(claim))
        for i in _rows(_contradicts(subject, predicted, whole)):
            pair = f"{int(whole[i])} of an image in a batch of {len(x)}, and {int(predicted[i])} in one of {what}"
            yield _finding("companions", f"predict says {pair}", x, claim.certified[i])
        if not subject.random and bool(((said != claim.prediction) | (certified != claim.certified)).any()):
            sentence = f"certify says something else of an image in a batch of {len(x)} and in one of {what}"
            yield _finding("companions", sentence, x)


def repeats(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """Asked again, also after other questions, it says the same."""
    first = subject.predict(x)
    other = 1 - x.flip(3)
    subject.predict(other)
    subject.certify(other, threat)
    for again in range(2):
        second, claimed = subject.predict(x), subject.certify(x, threat)
        changed = _rows(_contradicts(subject, second, first))
        for i in changed:
            sentence = f"predict says {int(first[i])} of an image, and {int(second[i])} when asked again"
            yield _finding("repeats", sentence, x[i : i + 1], claim.certified[i])
        otherwise = (claimed.prediction != claim.prediction) | (claimed.certified != claim.certified)
        for i in _rows(otherwise & (not subject.random)):
            yield _finding("repeats", "certify says something else of an image when asked again", x[i : i + 1])
        if changed or again:
            return


def inputs(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """The caller's images are as they were."""
    for name, more in (("predict", ()), ("certify", (threat,))):
        left = subject.watched(name, x, *more)
        rows = _rows((left != x).flatten(1).any(dim=1))
        if rows:
            sentence = f"{name} writes to the caller's images ({len(rows)} of {len(x)} are changed afterwards)"
            yield _finding("inputs", sentence, x)


def training_mode(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """In training mode it refuses, or says what it says in evaluation mode."""
    if not isinstance(subject.target, nn.Module):
        return
    copy = AuditedCertifier(deepcopy(subject.target).train(), subject.num_classes, subject.numpy)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for some in (x, x, x[:1]):
            try:
                told = copy.certify(some, threat)
            except Refused:
                return
            n = len(some)
            if bool(((told.prediction != claim.prediction[:n]) | (told.certified != claim.certified[:n])).any()):
                sentence = (
                    "certify answers in training mode, and says something else than in evaluation mode: batch "
                    "statistics or dropout; it has to refuse"
                )
                yield _finding("training mode", sentence, x)
                return


def values(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """Images with a pixel that is NaN, infinite or far out of range are better refused, or not certified.

    No certificate speaks of such images, so that it is not broken.
    """
    for value in (nan, inf, 1e30):
        wrong = x.clone()
        wrong[:, :, x.shape[2] // 2, x.shape[3] // 2] = value
        try:
            certified = subject.certify(wrong, threat).certified
        except Refused:
            continue
        if bool(certified.any()):
            sentence = f"{int(certified.sum())} of {len(x)} images with a pixel of {value:g} are certified"
            yield _finding("values", sentence, x, severity="warning")


def smaller(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """An image certified against a patch is certified against every smaller patch that it contains."""
    sizes = {(1, 1), (max(1, threat.height - 1), threat.width), (threat.height, max(1, threat.width - 1))}
    for height, width in sizes - {(threat.height, threat.width)}:
        one = PatchThreat(height, width, threat.count)
        try:
            certified = subject.certify(x, one).certified
        except Refused:
            continue
        for i in _rows(claim.certified & ~certified):
            sentence = f"an image is certified against {threat}, but not against {one}"
            yield _finding("smaller patch", sentence, x[i : i + 1])


def whole_image(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """A patch as large as the image may show any other image: where predictions differ, nothing is certified."""
    everything, predicted = PatchThreat(x.shape[2], x.shape[3]), subject.predict(x)
    try:
        told = subject.certify(x, everything)
    except Refused:
        return
    for i in _rows(told.certified):
        others = _rows(subject.changed(predicted, int(told.prediction[i])))
        if others:
            sentence = f"an image is certified against a patch that covers it, {everything}, and so could be any other"
            yield _finding("whole image", sentence, x[[i, others[0]]], told.certified[i])


def non_square(subject: AuditedCertifier, x: Tensor, threat: Patches, claim: Claim) -> Iterator[Finding]:
    """Images that are not square, where it takes them, are predicted as they are certified, alone and with others."""
    for turned in (torch.cat([x, x], dim=3), torch.cat([x, x], dim=2)):
        try:
            told = subject.certify(turned, threat)
        except Refused:
            continue
        for check in (agreement, repeats):
            for found in check(subject, turned, threat, told):
                yield Finding("non-square images", found.severity, found.sentence, found.tensors, found.note)


CHECKS: dict[str, Check] = {
    "agreement": agreement,
    "companions": companions,
    "repeats": repeats,
    "inputs": inputs,
    "training mode": training_mode,
    "values": values,
    "smaller patch": smaller,
    "whole image": whole_image,
    "non-square images": non_square,
}


def _contradicts(subject: AuditedCertifier, one: Tensor, other: Tensor) -> Tensor:
    """Marks images with two different answers; of a certifier that declares to be random, -1 differs from nothing."""
    return (one != other) & ((not subject.random) | ((one >= 0) & (other >= 0)))


def _rows(marked: Tensor) -> list[int]:
    return marked.nonzero()[:, 0].tolist()


def _finding(
    check: str, sentence: str, x: Tensor, certified: Tensor | None = None, severity: Severity = "inconsistent"
) -> Finding:
    """`certified`: whether the image is certified; then what contradicts its prediction breaks the certificate."""
    if certified is not None and bool(certified):
        severity, sentence = "broken certificate", f"{sentence}; it is certified"
    return Finding(check, severity, sentence, {"x": x.clone()}, {"kind": "consistency"})

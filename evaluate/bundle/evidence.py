"""The evidence of a classifier's certificates, as `robustpatch.proof` reads it; one way for each kind of classifier.

A defense of somebody else's registers its own:

    @evidence_of.register
    def _(classifier: MyDefense, x: Tensor, threat: Threat) -> bytes: ...

with a kind of evidence that `robustpatch.proof.bundle.KINDS` checks.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import singledispatch
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.certificate import Certificate
from robustpatch.certificates.exact import VoteEvidence
from robustpatch.certificates.listed import claimed
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.randomized import RandomizedClassifier, image_keys
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.ibp import BoundedClassifier
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.defenses.patchguard import MaskedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.storage.npz import MOST_BYTES
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.rectangle import PatchThreat

Evidence = tuple[str, bytes]  # its kind, and the file


@singledispatch
def evidence_of(classifier: Classifier, x: Tensor, threat: Threat) -> Evidence:
    """The evidence behind `certify` on images [B,C,H,W]. Raises `InvalidInput` where none can be kept."""
    raise InvalidInput(f"a {type(classifier.given).__name__} keeps no evidence that could be checked without it")


@evidence_of.register
def _(classifier: SmoothedClassifier, x: Tensor, threat: Threat) -> Evidence:
    return "votes", _saved(classifier.certify(x, threat))


@evidence_of.register
def _(classifier: MaskedClassifier, x: Tensor, threat: Threat) -> Evidence:
    found, model, size = classifier.certify(x, threat), classifier.network, (x.shape[2], x.shape[3])
    votes = model.voting.votes(model.certifiable_scores(x), found.guard)
    share = classifier.masking(*size).threshold
    (window,) = parse_threat(classifier.defense.window, size, files=False).threats
    masking = {"window": [window.height, window.width], "threshold": [share.numerator, share.denominator]}
    with np.load(BytesIO(_saved(replace(found, evidence=VoteEvidence(votes, model.ablation, size))))) as file:
        return "sums", packed({**file, "masking": _text(masking)})


@evidence_of.register
def _(classifier: PatchCleanser, x: Tensor, threat: Threat) -> Evidence:
    found, size = classifier.certify(x, threat), (x.shape[2], x.shape[3])
    named, lead = classifier.named_under_unions(x, found.certified)
    masks = classifier.defense.mask_set(*size)
    against, listed = _claimed_threats(threat, size)
    claim = {"image_size": list(size), "threats": against, "classes": classifier.num_classes, "guard": found.guard}
    claim |= {"count": masks.count, **(masks.rectangles or {})}
    outlines = {} if masks.rectangles else {"hidden": np.packbits(masks.hidden().flatten(1).numpy(), axis=1)}
    arrays = {
        "named": named.cpu().numpy().astype("<i4"),
        "lead": lead.cpu().numpy().astype("<f4"),
        **_of_certificate(found),
        "claim": _text(claim),
        **outlines,
        **{name: array.astype("<i4") for name, array in (listed or {}).items()},
    }
    return "masks", packed(arrays)


@evidence_of.register
def _(classifier: BoundedClassifier, x: Tensor, threat: Threat) -> Evidence:
    others = [str(one) for one in threat.threats if not isinstance(one, PatchThreat) or one.count > 1]
    if others:
        raise InvalidInput(f"threat is {', '.join(others)}; the regions of bounds are kept for single rectangles")
    found = classifier.certify(x, threat)
    parts = classifier.bounded_regions(x, threat)
    number = np.concatenate([np.full(len(image), number) for number, image, _, _ in parts] or [np.zeros(0)])
    image = np.concatenate([image.cpu().numpy() for _, image, _, _ in parts] or [np.zeros(0, int)])
    corners = np.concatenate([corners.cpu().numpy() for _, _, corners, _ in parts] or [np.zeros(0, int)])
    bound = np.concatenate([bound.cpu().numpy() for _, _, _, bound in parts] or [np.zeros(0)])
    kept = found.certified.cpu().numpy()[image] & (bound >= 0)
    claim = {
        "image_size": [x.shape[2], x.shape[3]],
        "threats": [[one.height, one.width, 1] for one in threat.threats],
        "classes": classifier.num_classes,
    }
    arrays = {
        "image": image[kept].astype("<i4"),
        "threat": number[kept].astype("<i4"),
        "corners": corners.reshape(len(image), 4)[kept].astype("<i4"),
        "bound": bound[kept].astype("<f8"),
        "leader": found.prediction.cpu().numpy()[image][kept].astype("<i4"),
        **_of_certificate(found),
        "claim": _text(claim),
    }
    return "bounds", packed(arrays)


@evidence_of.register
def _(classifier: RandomizedClassifier, x: Tensor, threat: Threat) -> Evidence:
    found, own, size = classifier.certify(x, threat), classifier.sampling, (x.shape[2], x.shape[3])
    against, listed = _claimed_threats(threat, size)
    if listed is not None:
        raise InvalidInput(f"threat is {threat}; the draws of randomized certificates are kept for rectangles")
    claim = {
        "image_size": list(size),
        "threats": against,
        "ablation": str(classifier.ablation),
        "selection": own.selection,
        "estimation": own.estimation,
        "alpha": own.alpha,
        "seed": own.seed,
        "guard": found.guard,
    }
    arrays = {
        "selected": classifier.tally(x, "selection", own.selection).cast.cpu().numpy().astype("<i8"),
        "counted": classifier.tally(x, "estimation", own.estimation).lower.cpu().numpy().astype("<i8"),
        "keys": np.stack([np.frombuffer(key, np.uint8) for key in image_keys(x)]),
        **_of_certificate(found),
        "claim": _text(claim),
    }
    return "draws", packed(arrays)


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays as numpy saves them, compressed. Raises `InvalidInput` for larger ones than are read."""
    for name, array in arrays.items():
        if array.nbytes > MOST_BYTES:
            raise InvalidInput(f"{name} has {array.nbytes:,} bytes of evidence; take fewer images in a file")
    with BytesIO() as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]
        return file.getvalue()


def _saved(found: Certificate) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder) / "proof.npz")
        return (Path(folder) / "proof.npz").read_bytes()


def _of_certificate(found: Certificate) -> dict[str, np.ndarray]:
    return {
        "prediction": found.prediction.cpu().numpy().astype("<i8"),
        "certified": found.certified.cpu().numpy().astype(bool),
    }


def _text(claim: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(claim, allow_nan=False).encode(), np.uint8)


def _claimed_threats(threat: Threat, size: tuple[int, int]) -> tuple[list[Any], dict[str, np.ndarray] | None]:
    """The threats as a proof file names them, where no ablation decides how many are checked."""
    return claimed(threat, Columns(1), size)

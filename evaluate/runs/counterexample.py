"""A certified prediction that a patch changed: saved so that anybody can see it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from attacks.base import Outcome, Proposal, judge, judge_of
from attacks.criterion import OutOfTopK
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.asking import certify, certify_paper, certify_top_k, predict
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.threats.base import Patches
from robustpatch.threats.parse import threat_from_dict

_MOST_BYTES = 2**28  # of a file: two images and the votes


@dataclass(frozen=True)
class Counterexample:
    """The clean and the attacked image [C,H,W], the patch's corners, and what the run claimed.

    Votes [N,K] (or units of scores) before and after are there for smoothed classifiers.
    """

    x: Tensor
    x_adv: Tensor
    corners: Tensor
    index: int
    prediction: int
    attack: str
    threat: Patches
    configuration: dict[str, Any]
    top_k: int = 1


def save_counterexample(output: str | Path | Store, model: torch.nn.Module, example: Counterexample) -> str:
    """Write counterexamples/image-INDEX-ATTACK-PATCH.safetensors under `output`; returns that name."""
    patch = str(example.threat).replace("*", "of")
    name = f"counterexamples/image-{example.index:08d}-{example.attack}-{patch}.safetensors"
    images = {"x": example.x, "x_adv": example.x_adv}
    tensors = {kept: image.cpu().contiguous().clone() for kept, image in images.items()} | {"corners": example.corners}
    voting = voting_classifier(as_classifier(model))
    if voting is not None and voting is model:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        for kept, image in (("votes_before", example.x), ("votes_after", example.x_adv)):
            cast = voting.votes(lent(image[None].to(device))).cast[0].cpu()
            tensors[kept] = cast.to(torch.uint8) if cast.dtype == torch.bool else cast
    claim = {
        "index": example.index,
        "prediction": example.prediction,
        "attack": example.attack,
        "configuration": example.configuration,
        "threat": example.threat.to_dict(),
        **({} if example.top_k == 1 else {"top_k": example.top_k}),
    }
    Store.of(output).write(name, save(tensors, metadata={"counterexample": json.dumps(claim)}))
    return name


def load_counterexample(path: str | Path) -> Counterexample:
    """Read a saved counterexample. Raises `InvalidInput` when there is none, it is damaged, or larger than any."""
    try:
        with fsspec.open(str(path), "rb") as file:
            content: bytes = file.read(_MOST_BYTES + 1)  # type: ignore[union-attr]
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
        tensors = load(content)
        header = read_object(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return _checked(read_object(header["__metadata__"]["counterexample"]), tensors)
    except (SafetensorError, OSError, ImportError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no counterexample ({one_line(error, 200)})") from error


def _checked(claim: dict[str, Any], tensors: dict[str, Tensor]) -> Counterexample:
    """Check what a file holds. Raises `ValueError` or `KeyError` for fields missing, too many or of other types."""
    x, x_adv, corners = (tensors[name] for name in ("x", "x_adv", "corners"))
    if x.ndim != 3 or x_adv.shape != x.shape or not x.is_floating_point() or not x_adv.is_floating_point():
        raise ValueError(f"its images are {x.dtype} {tuple(x.shape)} and {x_adv.dtype} {tuple(x_adv.shape)}")
    (threat, *others) = threat_from_dict(claim.pop("threat")).threats
    if others:
        raise ValueError("its threat is one of several, and a patch is of one")
    threat.check_fits(*x.shape[1:])
    if corners.dtype != torch.long or corners.shape != (threat.count, 2):
        raise ValueError(f"its corners are {corners.dtype} {tuple(corners.shape)}")
    for name in ("index", "prediction"):
        _whole(name, claim[name])
    if _whole("top_k", claim.get("top_k", 1)) < 1:
        raise ValueError("its top_k is below 1")
    if not isinstance(claim["attack"], str) or not isinstance(claim["configuration"], dict):
        raise ValueError("its attack is no text, or its configuration no table")
    return Counterexample(x=x, x_adv=x_adv, corners=corners, threat=threat, **claim)


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or abs(value) >= 2**63:
        raise ValueError(f"its {name} is {one_line(repr(value), 40)}, no whole number of 64 bits")
    return value


def replay(example: Counterexample, model: torch.nn.Module, device: torch.device | None = None) -> tuple[Outcome, bool]:
    """Judge the patch once more: the outcome, and whether the model still certifies the clean prediction. On the
    device of the model's weights, unless one is given.
    """
    device = device or next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    x, x_adv, corners = (tensor[None].to(device) for tensor in (example.x, example.x_adv, example.corners))
    none = torch.zeros(1, device=device)
    proposal = Proposal(x_adv, corners, none.long(), none)
    classifier = as_classifier(model)
    if not isinstance(classifier, CertifiedClassifier):
        raise InvalidInput(f"model is a {type(model).__name__} without certify; name the one it was found with")
    claimed = torch.tensor([example.prediction], device=device)
    if example.top_k > 1:
        found = certify_top_k(classifier, x, claimed, example.threat, example.top_k)
        outcome = judge(classifier, x, OutOfTopK(claimed, example.top_k), example.threat, proposal, proof=True)
        return outcome, bool((found.certified & found.clean)[0])
    exact = certify(classifier, x, example.threat)
    paper = certify_paper(classifier, x, example.threat, exact)
    claims = [exact] if paper is None else [exact, paper]
    proof = exact.confidence is None
    outcome = judge(classifier, x, claimed, example.threat, proposal, proof=proof)
    if proof:  # of a proof, an abstention is a change too
        changed = outcome.contained & outcome.in_range & (outcome.prediction != example.prediction)
        outcome = replace(outcome, broken=changed)
    if example.attack == "predict":  # no patch: predict itself contradicted the certificate
        answers = torch.stack(
            [predict(one, x) for one in ([classifier] if proof else [classifier, judge_of(classifier)])]
        )
        wrong = answers != example.prediction
        if not proof and classifier.randomized:  # it may abstain
            wrong &= answers >= 0
        outcome = replace(outcome, broken=wrong.any(dim=0))
    return outcome, any(bool(claim.certified[0]) and int(claim.prediction[0]) == example.prediction for claim in claims)


def check_stands(example: Counterexample, model: torch.nn.Module, device: torch.device) -> None:
    """Raise `InvalidInput` where a counterexample does not stand when it is replayed alone, before anybody hears of it.

    Then the model answers the same image differently from call to call or beside other images: neither that it was
    broken nor that it held can be said.
    """
    outcome, certified = replay(example, model, device)
    if certified and bool(outcome.broken[0]):
        return
    what = "the prediction is unchanged" if certified else "the clean image is not certified"
    raise InvalidInput(
        f"image {example.index} was certified and its prediction changed by {example.attack}, but replayed alone "
        f"{what}: the model's answers depend on chance, on earlier calls or on the other images of a batch; make them "
        "functions of the image, or certify with a confidence"
    )

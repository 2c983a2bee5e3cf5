"""A certified prediction that a patch changed: saved so that anybody can see it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import fsspec
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as dataclass_of_pydantic
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from attacks.base import Outcome, Proposal, judge
from evaluate.runs.claims import claims_of, criterion_of
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.cli.text import file_name, one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.sealing import read_tensors
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
    patch = file_name(str(example.threat))
    name = f"counterexamples/image-{example.index:08d}-{example.attack}-{patch}.safetensors"
    images = {"x": example.x, "x_adv": example.x_adv}
    tensors = {kept: image.cpu().contiguous().clone() for kept, image in images.items()} | {"corners": example.corners}
    voting = voting_classifier(as_classifier(model))
    if voting is not None and voting is model:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        for kept, image in (("votes_before", example.x), ("votes_after", example.x_adv)):
            cast = voting.votes(image[None].to(device).clone()).cast[0].cpu()
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
        tensors, claim = read_tensors(content, "counterexample")
        return _checked(_Claim(**claim), tensors)
    except (SafetensorError, OSError, ImportError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no counterexample ({one_line(error, 200)})") from error


@dataclass_of_pydantic(config=ConfigDict(strict=True, extra="forbid"))
class _Claim:
    index: Annotated[int, Field(ge=0, lt=2**63)]
    prediction: Annotated[int, Field(ge=-1, lt=2**63)]
    attack: str
    threat: Any
    configuration: dict[str, Any]
    top_k: Annotated[int, Field(ge=1, lt=2**63)] = 1


def _checked(claim: _Claim, tensors: dict[str, Tensor]) -> Counterexample:
    """Check what a file holds. Raises `ValueError` or `KeyError` for what no counterexample has."""
    x, x_adv, corners = (tensors[name] for name in ("x", "x_adv", "corners"))
    if x.ndim != 3 or x_adv.shape != x.shape or not x.is_floating_point() or not x_adv.is_floating_point():
        raise ValueError(f"its images are {x.dtype} {tuple(x.shape)} and {x_adv.dtype} {tuple(x_adv.shape)}")
    (threat, *others) = threat_from_dict(claim.threat).threats
    if others:
        raise ValueError("its threat is one of several, and a patch is of one")
    threat.check_fits(*x.shape[1:])
    if corners.dtype != torch.long or corners.shape != (threat.count, 2):
        raise ValueError(f"its corners are {corners.dtype} {tuple(corners.shape)}")
    return Counterexample(x, x_adv, corners, **{**vars(claim), "threat": threat})


def replay(example: Counterexample, model: torch.nn.Module, device: torch.device | None = None) -> tuple[Outcome, bool]:
    """Judge the patch once more: the outcome, and whether the model still certifies the clean prediction. On the
    device of the model's weights, unless one is given.
    """
    device = device or next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    x, x_adv, corners = (tensor[None].to(device) for tensor in (example.x, example.x_adv, example.corners))
    classifier, none = as_classifier(model), torch.zeros(1, device=device)
    if not classifier.certifies:
        raise InvalidInput(f"model is a {type(model).__name__} without certify; name the one it was found with")
    claimed = torch.tensor([example.prediction], device=device)
    claims = claims_of(classifier, x, claimed, example.threat, example.top_k)
    criterion = criterion_of(classifier, claimed, example.top_k)
    outcome = judge(
        classifier, x, criterion, example.threat, Proposal(x_adv, corners, none.long(), none), proof=claims.proof
    )
    if example.attack == "predict":  # no patch: predict itself contradicted the certificate
        outcome = replace(outcome, broken=~claims.consistent)
    elif claims.proof:  # an abstention is a change too
        changed = criterion.broken(outcome.prediction, outcome.counts)
        outcome = replace(outcome, broken=outcome.contained & outcome.in_range & changed)
    return outcome, bool(claims.certified[0]) and int(claims.prediction[0]) == example.prediction


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

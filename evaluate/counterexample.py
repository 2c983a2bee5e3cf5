"""A certified prediction that a patch changed: saved so that anybody can see it again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from attacks.base import Outcome, Proposal, judge, predict, referee
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import PatchThreat


@dataclass(frozen=True)
class Counterexample:
    """The clean and the attacked image [C,H,W], the patch's corners, and what the run claimed.

    Votes [N,K] before and after are there for smoothed classifiers.
    """

    x: Tensor
    x_adv: Tensor
    corners: Tensor
    index: int
    prediction: int
    attack: str
    threat: PatchThreat
    configuration: dict[str, Any]


def save_counterexample(
    output: Path,
    model: torch.nn.Module,
    x: Tensor,
    x_adv: Tensor,
    corners: list[int],
    index: int,
    prediction: int,
    attack: str,
    threat: PatchThreat,
    configuration: dict[str, Any],
) -> Path:
    """Write `output`/counterexamples/image-INDEX-ATTACK-PATCH.safetensors and return its path."""
    patch = str(threat).replace("*", "of")
    path = Path(output) / "counterexamples" / f"image-{index:08d}-{attack}-{patch}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = torch.tensor(corners or [0, 0] * threat.count).reshape(threat.count, 2)
    tensors = {"x": x.cpu().contiguous().clone(), "x_adv": x_adv.cpu().contiguous().clone(), "corners": where}
    if isinstance(model, SmoothedClassifier):
        for name, image in (("votes_before", x), ("votes_after", x_adv)):
            tensors[name] = model.votes(image[None]).cast[0].to(torch.uint8).cpu()
    claim = {
        "index": index,
        "prediction": prediction,
        "attack": attack,
        "configuration": configuration,
        "threat": [threat.height, threat.width, threat.count],
    }
    save_file(tensors, path, metadata={"counterexample": json.dumps(claim)})
    return path


def load_counterexample(path: str | Path) -> Counterexample:
    """Read a saved counterexample. Raises `InvalidInput` when there is none or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            claim = json.loads(file.metadata()["counterexample"])
            tensors = {name: file.get_tensor(name) for name in ("x", "x_adv", "corners")}
        return Counterexample(**tensors, threat=PatchThreat(*claim.pop("threat")), **claim)
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"replay is {path}, which is no counterexample ({error})") from error


def replay(example: Counterexample, model: torch.nn.Module) -> tuple[Outcome, bool]:
    """Judge the patch once more: the outcome, and whether the model still certifies the clean prediction."""
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    x, x_adv, corners = (tensor[None].to(device) for tensor in (example.x, example.x_adv, example.corners))
    none = torch.zeros(1, device=device)
    proposal = Proposal(x_adv, corners, none.long(), none)
    outcome = judge(model, x, torch.tensor([example.prediction], device=device), example.threat, proposal)
    methods: tuple[dict[str, Any], ...] = ({},)
    if isinstance(model, SmoothedClassifier):
        methods = ({"method": "exact"}, {"method": "margin"})
    claims = [model.certify(x, example.threat, **method) for method in methods]  # type: ignore[operator]
    if example.attack == "predict":  # no patch: predict itself contradicted the certificate
        answers = torch.stack([predict(model, x), predict(referee(model), x)])
        wrong = answers != example.prediction
        if claims[0].confidence is not None:  # it may abstain
            wrong &= answers >= 0
        outcome = replace(outcome, broken=wrong.any(dim=0))
    return outcome, any(bool(claim.certified[0]) and int(claim.prediction[0]) == example.prediction for claim in claims)

"""Training of base classifiers on ablated images, resumable to the bit."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustpatch.data import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.smoothing import SmoothedClassifier
from robustpatch.threat import Threat, parse_threat
from robustpatch.zoo import load_checkpoint, model_from, save_checkpoint


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides the weights, but for the data and the machine.

    `ablations`: ablations of each image in a step; 0 means all for a one-pass base and one, the same for the whole
    batch as in the paper, for a base that enumerates. The learning rate follows one cycle up to `lr`. `start` is a
    checkpoint to begin with, `certificate` the weight of the certificate's loss (see `certificate_loss`).
    """

    ablation: str = "columns:2"
    network: dict[str, Any] = field(default_factory=lambda: {"name": "strip"})
    voting: str = "threshold:0.3"
    encoding: str = "complement"
    patch: str = "5x5"
    epochs: int = 8
    batch_size: int = 256
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ablations: int = 0
    certificate: float = 0.0
    start: str | None = None
    bfloat16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "momentum", "weight_decay", "ablations", "certificate"):
            if not getattr(self, name) >= 0:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True)
class Accuracy:
    """Shares of all images: predicted right; right and certified by the margin; right and certified exactly."""

    clean: float
    certified_margin: float
    certified_exact: float


@torch.no_grad()
def accuracy(model: SmoothedClassifier, images: ImageSet, threat: Threat, device: str = "cpu") -> Accuracy:
    """Clean and certified accuracy on all of `images`, in evaluation mode; the mode is restored."""
    training = model.training
    model.eval()
    hits = torch.zeros(3, dtype=torch.long)
    try:
        for index in torch.arange(len(images)).split(500):
            x, y = (tensor.to(device) for tensor in images.batch(index))
            exact = model.certify(x, threat)
            margin = exact.by("margin")
            right = exact.prediction == y
            hits += torch.stack([(right & which).sum() for which in (right, margin.certified, exact.certified)]).cpu()
    finally:
        model.train(training)
    return Accuracy(*(hits / len(images)).tolist())


def train(
    config: TrainingConfig,
    images: ImageSet,
    validation: ImageSet,
    output: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    on_step: Callable[[int, int, float], None] = lambda *_: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda *_: None,
) -> SmoothedClassifier:
    """Train a base classifier by cross-entropy on the ablations of `images`; returns it in evaluation mode.

    After every epoch `output` holds `state.safetensors` (to resume from), `checkpoint.safetensors` (to use) and
    `history.json` (clean and certified accuracy on `validation`). A run that was interrupted and resumed ends with the
    same weights as one that was not, on the same kind of device and thread count. `on_step(epoch, step, loss)` and
    `on_epoch(history row)` report progress. Raises `InvalidInput`.
    """
    output = Path(output)
    state = output / "state.safetensors"
    if state.exists() and not resume:
        raise InvalidInput(f"output {output} already holds a training run; continue it with --resume, or name another")
    full = {
        **asdict(config),
        "guard": None,
        "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "dataset": images.name,
        "train_images": len(images),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = model_from(full).to(device)
    threat = parse_threat(config.patch, images.image_shape[1:])
    sets = _touched_sets(model, threat, *images.image_shape[1:]).to(device)
    if config.start is not None:
        loaded = load_checkpoint(config.start, ablation=model.ablation)
        if any(loaded.config[key] != full[key] for key in ("network", "encoding", "image_shape", "class_names")):
            raise InvalidInput(
                f"start is {config.start}, a checkpoint of another network or data set; name one of this"
            )
        model.base.load_state_dict(loaded.model.base.state_dict())
    if config.batch_size > len(images):
        raise InvalidInput(f"batch_size is {config.batch_size}, more than the {len(images)} training images")
    steps = len(images) // config.batch_size
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )
    total = steps * config.epochs + 1
    # The rise takes a quarter of the run, and at least one step: torch divides by its length.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=total, pct_start=max(0.25, 2 / total)
    )
    history = _restore(state, full, model, optimizer, schedule) if resume and state.exists() else []
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        generator = torch.Generator().manual_seed(1_000_003 * config.seed + epoch)
        order = torch.randperm(len(images), generator=generator)
        model.train()
        losses = 0.0
        for step in range(steps):
            x, y = images.batch(order[step * config.batch_size : (step + 1) * config.batch_size])
            loss = _loss(model, x.to(device), y.to(device), config, sets, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            losses += value
            on_step(epoch, step, value)
        row = {
            "epoch": epoch + 1,
            "loss": losses / steps,
            "seconds": round(time.monotonic() - started, 1),
            **asdict(accuracy(model, validation, threat, device)),
        }
        history.append(row)
        _save(state, full, model, optimizer, schedule, history)
        save_checkpoint(output / "checkpoint.safetensors", model, {**full, "history": history})
        (output / "history.json").write_text(json.dumps(history, indent=1))
        on_epoch(row)
    return model.eval()


def _loss(
    model: SmoothedClassifier, x: Tensor, y: Tensor, config: TrainingConfig, sets: Tensor, generator: torch.Generator
) -> Tensor:
    """Cross-entropy of the true class in every ablation drawn for this step, and the certificate's loss, with and
    without a patch: so that certified accuracy is not bought with clean accuracy.
    """
    n = model.ablation.count(*x.shape[2:])
    drawn = n if config.certificate else config.ablations or (n if model.one_pass else 1)
    index = None if drawn >= n else torch.randperm(n, generator=generator)[:drawn].to(x.device)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=config.bfloat16):
        logits = model.logits(x, index)
    labels = y[:, None].expand(logits.shape[:2])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    if config.certificate:
        soft = torch.sigmoid(model.voting.margins(logits))
        untouched = torch.zeros_like(sets[:1])  # the clean prediction is the certificate against no patch at all
        loss = loss + config.certificate * (certificate_loss(soft, y, sets) + certificate_loss(soft, y, untouched))
    return loss


def certificate_loss(
    soft: Float[Tensor, "B N K"], y: Int[Tensor, " B"], sets: Bool[Tensor, "S N"], votes: float = 2.0
) -> Float[Tensor, ""]:
    """About the share of images that are not certified for y: the mean of sigmoid(-margin / `votes`).

    margin = min over touched sets A and rivals j of s_y - s_y[A] - (s_j - s_j[A]) - |A|: the exact certificate, with
    soft votes s in place of those cast. An image far from certified, or certified by far, has little gradient.
    """
    left = torch.einsum("sn,bnk->bsk", (~sets).to(soft), soft)
    true = y[:, None, None].expand(-1, len(sets), 1)
    rival = left.scatter(2, true, -torch.inf).amax(dim=2)
    margin = left.gather(2, true)[..., 0] - rival - sets.sum(dim=1)
    return torch.sigmoid(-margin.amin(dim=1) / votes).mean()


def _touched_sets(model: SmoothedClassifier, threat: Threat, height: int, width: int) -> Bool[Tensor, "S N"]:
    """The sets of ablations that one patch of the threat can touch."""
    touched = [model.ablation.touched(one, height, width) for one in threat.threats]
    return torch.cat([one.member(torch.arange(len(one.sizes))) for one in touched])


def _save(path: Path, config: dict[str, Any], model: SmoothedClassifier, optimizer, schedule, history) -> None:
    tensors = {f"base.{name}": tensor.detach().cpu().contiguous() for name, tensor in model.base.state_dict().items()}
    saved = optimizer.state_dict()
    for number, entry in saved["state"].items():
        if entry.get("momentum_buffer") is not None:  # none without momentum
            tensors[f"momentum.{number}"] = entry["momentum_buffer"].cpu().contiguous()
    groups = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
    meta = {"config": config, "groups": groups, "schedule": schedule.state_dict(), "history": history}
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, part, metadata={"state": json.dumps(meta)})
    os.replace(part, path)


def _restore(
    path: Path, config: dict[str, Any], model: SmoothedClassifier, optimizer, schedule
) -> list[dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path} is damaged ({error}); delete it to train from the start") from error
    if meta["config"] != json.loads(json.dumps(config)):
        differing = sorted(k for k in config if json.loads(json.dumps(config[k])) != meta["config"].get(k))
        raise InvalidInput(
            f"output {path.parent} was trained with another {', '.join(differing)}; "
            "resume with the same options, or name another output"
        )
    tensors = load_file(path)
    model.base.load_state_dict({k.removeprefix("base."): v for k, v in tensors.items() if k.startswith("base.")})
    saved = optimizer.state_dict()
    for group, stored in zip(saved["param_groups"], meta["groups"], strict=True):
        group.update(stored)
    saved["state"] = {
        int(k.removeprefix("momentum.")): {"momentum_buffer": v}
        for k, v in tensors.items()
        if k.startswith("momentum.")
    }
    optimizer.load_state_dict(saved)
    schedule.load_state_dict(meta["schedule"])
    return meta["history"]

"""Training of base classifiers on ablated images, and of undefended ones on whole images, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.ablations.union import Union
from robustpatch.checkpoints import load_checkpoint, model_from, network_of
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.classifiers.witness import deviation_from_float32
from robustpatch.data.image_set import ImageSet, read_ahead
from robustpatch.defenses import Defended
from robustpatch.errors import InvalidInput
from robustpatch.networks import UnionNet
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.rectangle import Threat, parse_threat
from robustpatch.training import distributed, state
from robustpatch.training.augmentation import augmented
from robustpatch.training.config import TrainingConfig
from robustpatch.training.losses import objective, touched_sets
from robustpatch.training.validation import Accuracy, accuracy

_WITNESSED = 32  # validation images on which bfloat16 is held against float32 after each epoch


def train(
    config: TrainingConfig,
    images: ImageSet,
    validation: ImageSet,
    output: str | Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    measure_every: int = 1,
    measure_images: int | None = None,
    on_step: Callable[[int, int, float], None] = lambda *_: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda *_: None,
) -> nn.Module:
    """Train a base classifier by cross-entropy on the ablations of `images`, or an undefended one on the images
    themselves; returns the classifier in evaluation mode.

    After every epoch `output`, a local folder, holds `state.safetensors` (to resume from), and, made of that alone,
    `checkpoint.safetensors` (to use) and `history.json` (clean and certified accuracy on `validation`: after every
    `measure_every`-th epoch and the last, on `measure_images` of its images spread evenly, or on all; under bfloat16
    `float32_deviation`, how far scores are from float32's). A loss, a weight or a deviation that is no number or no
    rounding ends the training before anything of its epoch is written. A run that was interrupted and resumed ends with
    the same weights as one that was not, on the same kind of device and thread count; whenever it was killed, the
    checkpoint is then that of the last epoch, and a checkpoint or history that is missing or damaged is made again.
    One process, or one group of them, trains in an output at a time. `on_step(epoch, step, loss)` and
    `on_epoch(history row)` report progress. Raises `InvalidInput`.
    """
    store = Store(local_folder(output))
    for name, value in (("measure_every", measure_every), ("measure_images", measure_images)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name} is {value}; it must be at least 1")
    with nullcontext() if distributed.rank() else store.held(alone=True):
        if store.exists(state.STATE) and not resume:
            raise InvalidInput(
                f"output {store} already holds a training run; continue it with --resume, or name another"
            )
        return _train(
            config,
            images,
            validation,
            store,
            device=device,
            workers=workers,
            measure_every=measure_every,
            measure_images=measure_images,
            on_step=on_step,
            on_epoch=on_epoch,
        )


def _train(
    config: TrainingConfig,
    images: ImageSet,
    validation: ImageSet,
    store: Store,
    *,
    device: str,
    workers: int,
    measure_every: int,
    measure_images: int | None,
    on_step: Callable[[int, int, float], None],
    on_epoch: Callable[[dict[str, Any]], None],
) -> nn.Module:
    share, shares = distributed.rank(), distributed.world()
    full = {**config.for_checkpoint(), **about(images)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = model_from(full, pretrained=True).to(device)
    threat, sets, ablation = None, None, None
    trained = _trained(model)
    if isinstance(trained, SmoothedClassifier):
        threat, ablation = parse_threat(config.patch, images.image_shape[1:]), trained.ablation
        sets = touched_sets(ablation, threat, *images.image_shape[1:]).to(device)
    elif isinstance(model, RandomizedClassifier):
        threat, ablation = parse_threat(config.patch, images.image_shape[1:]), model.ablation
    elif isinstance(model, Defended):
        threat = parse_threat(config.patch, images.image_shape[1:])
    if config.start is not None:
        _begin_with(config.start, model, full)
    _check_images(config, images, shares)
    frozen = [] if config.only is None else _freeze(network_of(model), config)
    steps = len(images) // config.batch_size
    optimizer = _optimizer(model, config)
    total = steps * config.epochs + 1
    # The rise takes a quarter of the run, and at least one step: torch divides by its length.
    low, high = momenta(config.momentum)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=total, pct_start=max(0.25, 2 / total), base_momentum=low, max_momentum=high
    )
    history = state.restore(store, full, model, optimizer, schedule)
    teacher = None if config.teacher is None else _teacher(config.teacher, trained, full, device)
    if not share:
        store.check_writable(room=state.size(model))
        if history:
            state.publish(store, full, model, history)
    loss_of = distributed.shared(_Loss(model, config, threat, sets, teacher), some_unused=isinstance(ablation, Union))
    for epoch in range(len(history), config.epochs):
        started = time.monotonic()
        seed = 1_000_003 * config.seed + epoch
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(images), generator=generator)[: steps * config.batch_size]
        if share:  # the first process draws as one alone would, the others for themselves
            generator.manual_seed(seed + (share << 40))
        model.train()
        for module in frozen:
            module.eval()
        losses = 0.0
        batches = order.view(steps, -1)[:, share::shares]
        for step, (x, y) in enumerate(read_ahead(images, batches, workers)):
            x = augmented(x, config.crop, config.flip, generator, config.zoom)
            loss = loss_of(x.to(device), y.to(device), generator, (epoch * steps + step) / (steps * config.epochs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            _check_loss(value, epoch, step, config)
            losses += value
            if not share:
                on_step(epoch, step, value)
        distributed.agree(model)
        mean_loss = float(distributed.mean(torch.tensor(losses / steps, dtype=torch.float64, device=device)))
        if not share:
            _check_weights(model, epoch, config)
            due = (epoch + 1) % measure_every == 0 or epoch + 1 == config.epochs
            row = {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "float32_deviation": _off_float32(model, validation, epoch, config, device),
                "seconds": round(time.monotonic() - started, 1),
                **asdict(accuracy(model, validation, threat, device, count=measure_images) if due else Accuracy()),
            }
            history.append(row)
            state.save(store, full, model, optimizer, schedule, history)
            on_epoch(row)
        distributed.wait()
    return model.eval().requires_grad_()


def _check_loss(loss: float, epoch: int, step: int, config: TrainingConfig) -> None:
    """Refuse to go on from a loss that is no number: the last step has spoilt the weights, or this one would."""
    if not math.isfinite(loss):
        raise InvalidInput(f"loss is {loss} in step {step + 1} of epoch {epoch + 1}; {_finite_again(config)}")


def _check_weights(model: nn.Module, epoch: int, config: TrainingConfig) -> None:
    """Refuse to publish weights or batch statistics that are no numbers."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InvalidInput(f"{name} holds NaN or infinity after epoch {epoch + 1}; {_finite_again(config)}")


def _finite_again(config: TrainingConfig) -> str:
    cure = "train in float32 with --no-bfloat16, or" if config.bfloat16 else ""
    return f"the epochs before are kept, and nothing of this one: {cure} lower lr, {config.lr:g}".replace(":  ", ": ")


@torch.no_grad()
def _off_float32(
    model: nn.Module, validation: ImageSet, epoch: int, config: TrainingConfig, device: str
) -> float | None:
    """The largest distance of a score under bfloat16 autocast from float32's, on the first validation images; None
    where the training is in float32. Refuses one that rounding does not explain (`witness.Deviation.explained`).

    Of the ablations, those that the network is asked about together; of a base that enumerates, 64.
    """
    if not config.bfloat16:
        return None
    trained = _trained(model)
    if isinstance(trained, RandomizedClassifier):
        trained = trained.enumerated()
    trained = trained.network if isinstance(trained, Defended) else trained
    training, x = model.training, validation.batch(range(min(_WITNESSED, len(validation))))[0].to(device)

    def logits(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not isinstance(network, SmoothedClassifier):
            return network(x)
        n = network.ablation.count(*x.shape[2:])
        few = None if network.one_pass else torch.linspace(0, n - 1, min(n, 64), device=x.device).round().long()
        return network.logits(x, few)

    model.eval()
    trained.eval()
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            found = deviation_from_float32(trained, x, logits)
    finally:
        model.train(training)
    assert found is not None
    if not found.explained:
        raise InvalidInput(
            f"bfloat16 is off float32 by {found.logit:.2g} in a logit, where the largest is {found.largest:.2g}, on "
            f"validation images after epoch {epoch + 1}: a wrong kernel or an overflow, not rounding; nothing of this "
            "epoch is kept: train in float32 with --no-bfloat16"
        )
    return found.score


class _Loss(nn.Module):
    """`objective` of the model as a module, which is what several processes can share."""

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        threat: Threat | None,
        sets: torch.Tensor | None,
        teacher: SmoothedClassifier | None,
    ) -> None:
        super().__init__()
        self.model, self._config, self._threat, self._sets = model, config, threat, sets
        self._teacher = [teacher]  # in a list, so that its weights are none of this module's

    def forward(self, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator, done: float) -> torch.Tensor:
        trained = _trained(self.model)
        if isinstance(trained, Defended) and self._threat is not None:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self._config.bfloat16):
                return trained.training_loss(x, y, self._threat, generator, done).float()
        return objective(trained, x, y, self._config, self._threat, self._sets, generator, self._teacher[0])


def _trained(model: nn.Module) -> nn.Module:
    """What the objective is of: the smoothed classifier inside a defense that has no loss of its own, or the model."""
    if isinstance(model, Defended) and type(model).training_loss is Defended.training_loss:
        return model.network if isinstance(model.network, SmoothedClassifier) else model
    return model


def _check_images(config: TrainingConfig, images: ImageSet, processes: int) -> None:
    if config.crop >= min(images.image_shape[1:]):
        raise InvalidInput(f"crop is {config.crop}, but the images have {images.image_shape[1:]} pixels; move by fewer")
    if config.batch_size > len(images):
        raise InvalidInput(f"batch_size is {config.batch_size}, more than the {len(images)} training images")
    if config.batch_size % processes:
        raise InvalidInput(
            f"batch_size is {config.batch_size}, which {processes} processes cannot share evenly; use a multiple"
        )


def about(images: ImageSet) -> dict[str, Any]:
    """What a checkpoint notes of the images that it was trained on."""
    return {
        "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "dataset": images.name,
        "train_images": len(images),
    }


def _begin_with(start: str, model: nn.Module, config: dict[str, Any]) -> None:
    """Load the weights of a checkpoint, or of one for each part of a union, joined by "+"."""
    inner = model.network if isinstance(model, Defended) else model
    ablation = inner.ablation if isinstance(inner, SmoothedClassifier | RandomizedClassifier) else None
    pairs: list[tuple[str, Ablation | SparseAblation | None, nn.Module]] = [(start, ablation, network_of(model))]
    if isinstance(ablation, Union) and "+" in start:
        assert isinstance(model, SmoothedClassifier)
        parts = list(model.base.parts) if isinstance(model.base, UnionNet) else []
        names = start.split("+")
        if len(names) != len(parts):
            raise InvalidInput(f"start is {start}, {len(names)} checkpoints, but {ablation} has {len(parts)} parts")
        pairs = list(zip(names, ablation.parts, parts, strict=True))
    for name, own, network in pairs:
        loaded = load_checkpoint(name, ablation=own)
        same = ["encoding", "image_shape", "class_names"]  # an undefended classifier has no encoding
        same += ["network"] if network is network_of(model) else []
        unlike = f"start is {name}, a checkpoint of another network or data set; name one of this"
        if any(loaded.config.get(key) != config.get(key) for key in same):
            raise InvalidInput(unlike)
        try:
            network.load_state_dict(network_of(loaded.model).state_dict())
        except RuntimeError as error:
            raise InvalidInput(unlike) from error


def _teacher(name: str, trained: nn.Module, config: dict[str, Any], device: str) -> SmoothedClassifier:
    """The smoothed classifier of a checkpoint, to learn from."""
    if not isinstance(trained, SmoothedClassifier):
        raise InvalidInput(f"teacher is {name}, but a {type(trained).__name__} is trained; it is for smoothed ones")
    loaded = load_checkpoint(name, ablation=trained.ablation)
    if any(loaded.config.get(key) != config.get(key) for key in ("image_shape", "class_names")):
        raise InvalidInput(f"teacher is {name}, a checkpoint of another data set; name one of this")
    return loaded.smoothed.to(device).requires_grad_(False)


def _freeze(network: nn.Module, config: TrainingConfig) -> list[nn.Module]:
    """Stop the gradients of all weights that are not under the name `only`; the layers that consist of such."""
    if config.start is None:
        raise InvalidInput(f"only is {config.only}, but all other weights would stay as drawn; set --start")
    for name, weight in network.named_parameters():
        weight.requires_grad_(config.only in name.split("."))
    if not any(weight.requires_grad for weight in network.parameters()):
        known = ", ".join(dict.fromkeys(name.split(".")[0] for name, _ in network.named_parameters()))
        raise InvalidInput(f"only is {config.only}, under which the network has no weights; it has {known}")
    layers = [module for module in network.modules() if not any(True for _ in module.children())]
    weights = [(layer, list(layer.parameters())) for layer in layers]
    return [layer for layer, own in weights if own and not any(weight.requires_grad for weight in own)]


def momenta(middle: float) -> tuple[float, float]:
    """The least and the largest momentum of a cycle around `middle`: 0.05 to either side, less near 0 and 1."""
    half = min(0.05, middle, (1 - middle) / 2)
    return round(middle - half, 12), round(middle + half, 12)  # of 0.9, exactly 0.85 and 0.95


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        betas = (config.momentum, 0.999)
        return torch.optim.AdamW(model.parameters(), config.lr, betas, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        model.parameters(),
        config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )

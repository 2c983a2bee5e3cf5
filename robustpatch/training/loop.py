"""Training of base classifiers on ablated images, and of undefended ones on whole images, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.union import Union
from robustpatch.checkpoints import model_from, network_of
from robustpatch.cli.text import one_line
from robustpatch.data.image_set import ImageSet, read_ahead
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store, local_folder
from robustpatch.threats.parse import parse_threat
from robustpatch.training import distributed, state
from robustpatch.training.augmentation import augmented
from robustpatch.training.config import TrainingConfig
from robustpatch.training.initial_weights import begin_with, freeze, teacher_of
from robustpatch.training.losses import Loss, touched_sets, trained_part
from robustpatch.training.numeric_checks import check_loss, check_weights, off_float32
from robustpatch.training.optimizer import optimizer_of, schedule_of
from robustpatch.training.validation import Accuracy, accuracy


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
    threat, sets, ablation = None, None, None if config.ablation is None else parse_source(config.ablation)
    if ablation is not None or config.defense is not None:
        threat = parse_threat(config.patch, images.image_shape[1:])
        if isinstance(ablation, Ablation) and config.certificate:
            sets = touched_sets(ablation, threat, *images.image_shape[1:]).to(device)
    if config.start is not None:
        begin_with(config.start, model, full)
    _check_images(config, images, validation, shares)
    frozen = [] if config.only is None else freeze(network_of(model), config)
    steps = len(images) // config.batch_size
    optimizer = optimizer_of(model, config)
    schedule = schedule_of(optimizer, config, steps * config.epochs)
    history = state.restore(store, full, model, optimizer, schedule)
    teacher = None if config.teacher is None else teacher_of(config.teacher, trained_part(model), full, device)
    if not share:
        store.check_writable(room=state.size(model))
        if history:
            state.publish(store, full, model, history)
    loss_of = distributed.shared(Loss(model, config, threat, sets, teacher), some_unused=isinstance(ablation, Union))
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
            x = augmented(x, generator, **config.augmentation)
            loss = loss_of(x.to(device), y.to(device), generator, (epoch * steps + step) / (steps * config.epochs))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            value = float(loss.detach())
            check_loss(value, epoch, step, config)
            losses += value
            if not share:
                on_step(epoch, step, value)
        distributed.agree(model)
        mean_loss = float(distributed.mean(torch.tensor(losses / steps, dtype=torch.float64, device=device)))
        if not share:
            check_weights(model, epoch, config)
            due = (epoch + 1) % measure_every == 0 or epoch + 1 == config.epochs
            row = {
                "epoch": epoch + 1,
                "loss": mean_loss,
                "float32_deviation": off_float32(model, validation, epoch, config, device),
                "seconds": round(time.monotonic() - started, 1),
                **asdict(accuracy(model, validation, threat, device, count=measure_images) if due else Accuracy()),
            }
            history.append(row)
            state.save(store, full, model, optimizer, schedule, history)
            on_epoch(row)
        distributed.wait()
    return model.eval().requires_grad_()


def _check_images(config: TrainingConfig, images: ImageSet, validation: ImageSet, processes: int) -> None:
    for what in ("image_shape", "class_names"):
        if getattr(images, what) != getattr(validation, what):
            raise InvalidInput(
                f"validation images have {what} {one_line(getattr(validation, what), 200)}, training images "
                f"{one_line(getattr(images, what), 200)}; bring a folder's to one size with --image-size, and make a "
                "folder of each class in both"
            )
    if config.crop >= min(images.image_shape[1:]):
        raise InvalidInput(f"crop is {config.crop}, but the images have {images.image_shape[1:]} pixels; move by fewer")
    if config.batch_size > len(images):
        raise InvalidInput(f"batch_size is {config.batch_size}, more than the {len(images)} training images")
    if config.batch_size % processes:
        raise InvalidInput(
            f"batch_size is {config.batch_size}, which {processes} processes cannot share evenly; use a multiple"
        )


def about(images: ImageSet) -> dict[str, Any]:
    """The facts that a checkpoint notes of the images that it was trained on."""
    return {
        "image_shape": list(images.image_shape),
        "class_names": list(images.class_names),
        "dataset": images.name,
        "train_images": len(images),
    }

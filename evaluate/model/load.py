"""The model that a run is asked for: a checkpoint with what the options change of it, or an object of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluate.cli.command import check_fit
from evaluate.cli.options import Options
from evaluate.model.configured import check_answers, load_model, own_model, with_defense
from evaluate.model.objects import module_of
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput


@dataclass(frozen=True)
class Subject:
    """The model of a run: what to call it, what a run notes of it to find it again, how long its training took by its
    checkpoint (None where that says nothing), and the user's module that made it (None of a checkpoint).
    """

    model: torch.nn.Module
    name: str
    stem: str
    note: dict[str, Any]
    train_seconds: float | None = None
    module: str | None = None


def subject_of(options: Options, images: ImageSet, device: str) -> Subject:
    """Load what `options` name, fit for `images`. Raises `InvalidInput`."""
    if options.model is None:
        loaded = load_model(
            options.checkpoint,
            defense=options.defense,
            ablation=options.ablation,
            theta=options.theta,
            voting=options.voting,
            guard=options.guard,
            randomized=options.randomized,
            alpha=options.alpha,
            samples=options.samples,
            seed=options.seed,
            device=device,
            dtype=options.dtype,
        )
        check_fit(options.checkpoint, loaded, images, named=options.classes is not None)
        about = as_classifier(loaded.model).describe()
        note = {"checkpoint": options.checkpoint, "checkpoint_sha256": loaded.sha256, **about}
        seconds = loaded.config.get("train_seconds")
        return Subject(loaded.model, options.checkpoint, Path(options.checkpoint).stem, note, seconds)
    for name in ("ablation", "theta", "voting", "guard", "randomized", "alpha", "samples"):
        value = getattr(options, name)
        if value:
            raise InvalidInput(
                f"{name} is {value}, which is for checkpoints; build model {options.model} as it is to be tested, and "
                f"drop --{name}"
            )
    model = own_model(options.model, device=device, dtype=options.dtype)
    check_answers(options.model, model, images, device)
    if options.defense is not None:
        model = with_defense(model, options.defense, len(images.class_names), f"model {options.model}")
    stem = options.model.rpartition(":")[2]
    note = {"model": options.model, **as_classifier(model).describe()}
    return Subject(model, options.model, stem, note, module=module_of(options.model, "model").__name__)

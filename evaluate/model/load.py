"""Load the model of a run: a checkpoint with what the options change of it, or an object of the user's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from evaluate.cli.command import check_dtype, check_fit
from evaluate.cli.options import Options
from evaluate.model.own import open_of, source_of, without_gradients
from robustpatch.ablations.parse import parse_source
from robustpatch.certificates.randomized import Sampling
from robustpatch.checkpoints import Checkpoint, load_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, guarded_classifier, voting_classifier
from robustpatch.data.images import ImageSet
from robustpatch.defenses import Defended, parse_defense
from robustpatch.defenses.masked_network import MaskingDefense
from robustpatch.errors import InvalidInput
from robustpatch.intake import Source
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.rules import Threshold, Voting, first_argmax
from robustpatch.voting.scored import SigmoidThreshold

_OF_CHECKPOINTS = ("ablation", "theta", "voting", "guard", "randomized", "alpha", "samples")  # options


@dataclass(frozen=True)
class Subject:
    """The model of a run: its name, what a run notes of it to find it again, how long its training took by its
    checkpoint (None where that says nothing), the user's module that made it (None where no code of the user's did),
    and what is to be said of it before the run.
    """

    model: torch.nn.Module
    name: str
    stem: str
    note: dict[str, Any]
    train_seconds: float | None = None
    module: str | None = None
    notes: tuple[str, ...] = ()


def subject_of(options: Options, images: ImageSet, device: str, source: Source | None = None) -> Subject:
    """Load what `options` name, fit for `images`; `source`, where it was looked at before. Raises `InvalidInput`."""
    if options.model is None:
        source_of(options)  # refuses what is for --model
        loaded = load_model(
            options.checkpoint,
            defense=options.defense,
            seed=options.seed,
            device=device,
            dtype=options.dtype,
            **{name: getattr(options, name) for name in _OF_CHECKPOINTS},
        )
        check_fit(options.checkpoint, loaded, images, named=options.classes is not None)
        about = as_classifier(loaded.model).describe()
        note = {"checkpoint": options.checkpoint, "checkpoint_sha256": loaded.sha256, **about}
        seconds = loaded.config.get("train_seconds")
        return Subject(loaded.model, options.checkpoint, Path(options.checkpoint).stem, note, seconds)
    for name in _OF_CHECKPOINTS:
        value = getattr(options, name)
        if value:
            raise InvalidInput(
                f"{name} is {value}, which is for checkpoints; build model {options.model} as it is to be tested, and "
                f"drop --{name}"
            )
    opened = open_of(options, images.image_shape[1:], device, options.dtype, source)
    model = opened.model
    check_answers(options.model, model, images, device)
    if options.defense is not None:
        model = with_defense(model, options.defense, len(images.class_names), f"model {options.model}")
    note = {"model": options.model, **opened.note, **as_classifier(model).describe()}
    return Subject(model, options.model, opened.stem, note, module=opened.module, notes=opened.notes)


def load_model(
    name: str,
    *,
    defense: str | None = None,
    ablation: str | None = None,
    theta: float | None = None,
    voting: str | None = None,
    guard: float | None = None,
    randomized: bool = False,
    alpha: float | None = None,
    samples: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> Checkpoint:
    """Load the checkpoint of that name, its votes as asked for, with that `defense` around it; None leaves what it has.

    `randomized`: its ablations sampled; of a sparse checkpoint they always are. `alpha`, `samples` (a tenth as many
    choose the class) and `seed` are for those alone. Raises `InvalidInput` for what the checkpoint gives no meaning.
    """
    precision = check_dtype(dtype)
    loaded = load_checkpoint(name, ablation=None if ablation is None else parse_source(ablation))
    about = as_classifier(loaded.model).describe()
    asked = (("theta", theta), ("voting", voting), ("guard", guard), ("randomized", randomized or None))
    for option, value in asked:
        kind = f"of {about['defense']}" if "defense" in about else "undefended"
        if value is not None and voting_classifier(as_classifier(loaded.model)) is None:
            raise InvalidInput(
                f"{option} is {value}, but checkpoint {name} is {kind} and casts no votes; "
                f"drop --{option} or name another checkpoint"
            )
    sampled = randomized or "sampling" in about
    for option, value in asked[:2] if sampled else ():
        if value is not None:
            raise InvalidInput(f"{option} is {value}, but randomized certificates are of top-1 votes; drop --{option}")
    if theta is not None and voting is not None:
        raise InvalidInput(f"theta is {theta} and voting is {voting}, a rule with its own numbers; drop --theta")
    for option, value in (("alpha", alpha), ("samples", samples)):
        if value is not None and not sampled:
            raise InvalidInput(
                f"{option} is {value}, but of checkpoint {name} nothing is left to chance; drop --{option}, or sample "
                "its ablations with --randomized"
            )
    if theta is not None:
        loaded.smoothed.voting = with_theta(loaded.smoothed.voting, theta)
    if voting is not None:
        loaded.smoothed.voting = parse_voting(voting, loaded.smoothed.voting.guard)
    if sampled:
        options: dict[str, Any] = {"seed": seed}
        options |= {} if alpha is None else {"alpha": alpha}
        options |= {} if samples is None else {"estimation": samples, "selection": max(1, samples // 10)}
        loaded = replace(loaded, model=_sampled(loaded, Sampling(**options)))
    model = loaded.model
    if guard is not None:
        as_classifier(model).set_guard(guard)
    if defense is not None:
        model = with_defense(model, defense, len(loaded.config["class_names"]), f"checkpoint {name}")
        counted = guarded_classifier(as_classifier(model))
        for option, value in asked[:2]:
            if value is not None and counted is not None and counted.voting != loaded.smoothed.voting:
                raise InvalidInput(f"{option} is {value}, but {defense} counts {counted.voting}; drop --{option}")
    model.to(device, precision)
    without_gradients(model)
    return replace(loaded, model=model)


def with_defense(model: torch.nn.Module, text: str, num_classes: int, named: str) -> Defended:
    """Put the defense of that text around the model, in evaluation mode; a defense by masks in place of another that
    shows hidden pixels alike, so that masks can be those for another patch. Raises `InvalidInput` for a model that has
    any other defense, whose votes are samples, or that was trained on images as they are where the defense hides
    pixels.
    """
    defense, about = parse_defense(text), as_classifier(model).describe()
    if "defense" in about:
        own = parse_defense(about["defense"])
        if isinstance(own, MaskingDefense) and isinstance(defense, MaskingDefense):
            if (defense.shown.name, vars(defense.shown)) == (own.shown.name, vars(own.shown)):
                return defense.wrap(cast(Defended, model).network, num_classes=num_classes).eval()
            raise InvalidInput(
                f"defense is {text}, which shows hidden pixels to the network by {defense.shown.name!r}, but {named} "
                f"was trained for {own}; say hidden= as there"
            )
        raise InvalidInput(f"defense is {text}, but {named} is of {about['defense']} already; drop --defense")
    if "sampling" in about:
        raise InvalidInput(
            f"defense is {text}, but the votes of {named} are samples; drop --defense, or name one without chance"
        )
    if defense.encoding is not None:
        raise InvalidInput(
            f"defense is {text}, which shows hidden pixels to the network by the encoding {defense.encoding.name!r}, "
            f"but {named} takes images as they are; train one that knows it: robustpatch train --ablation "
            f"none --defense {text}"
        )
    return defense.wrap(model, num_classes=num_classes).eval()


def with_theta(voting: Voting, theta: float) -> Voting:
    if voting.link not in ("softmax", "sigmoid"):
        raise InvalidInput(f"theta is {theta}, but {voting} sums scores that have no threshold; drop --theta")
    return (Threshold if voting.link == "softmax" else SigmoidThreshold)(theta, voting.guard)


@torch.no_grad()
def check_answers(name: str, model: torch.nn.Module, images: ImageSet, device: str) -> None:
    """Refuse a module that does not answer images of this size with one score for each class, each a number."""
    x, _ = images.batch(range(min(2, len(images))))
    tensor = next((one for one in model.parameters() if one.is_floating_point()), None)
    given = x.to(device) if tensor is None else x.to(device, tensor.dtype)  # as everywhere else
    try:
        scores = _answers(model, given.clone())
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "bring a folder's images to the size it takes with --image-size and --channels"
        if voting_classifier(as_classifier(model)) is not None:
            remedy = "its base sees encoded images, by default of 2C channels, and returns num_classes scores"
        raise InvalidInput(
            f"model {name} fails on {images.name}'s images, {tuple(x.shape)} ({reason}); {remedy}"
        ) from error
    shape = tuple(scores.shape) if isinstance(scores, torch.Tensor) else None
    if shape is None or len(shape) != 2 or shape[0] != len(x):
        what = type(scores).__name__ if shape is None else f"a tensor of shape {shape}"
        raise InvalidInput(f"model {name} answers {len(x)} images with {what}; it must return scores [B,K]")
    if shape[1] != len(images.class_names):
        raise InvalidInput(
            f"model {name} has {shape[1]} outputs, but {images.name} has {len(images.class_names)} classes; name those "
            "of the outputs, in order, with --classes"
        )
    try:
        first_argmax(scores)
    except InvalidInput as error:
        raise InvalidInput(f"model {name}: {error}") from error


def _answers(model: torch.nn.Module, x: torch.Tensor) -> Any:
    """What the model returns for images; of one that votes, one of its ablations: large images have many."""
    voting = voting_classifier(as_classifier(model))
    if voting is None or voting is not model or voting.one_pass or voting.overridden(SmoothedClassifier, "forward"):
        return model(x)
    return voting.logits(x, torch.zeros(1, dtype=torch.long, device=x.device))[:, 0]


def as_in_run(loaded: Checkpoint, note: dict[str, Any]) -> torch.nn.Module:
    """Give the checkpoint's model the votes, samples and defense that a run noted."""
    own, classes = as_classifier(loaded.model).describe().get("defense"), len(loaded.config["class_names"])
    if own is not None and note.get("defense") in (None, own):
        return loaded.model
    if own is not None:
        return with_defense(loaded.model, note["defense"], classes, f"checkpoint {loaded.path.name}")
    if note.get("defense") is None:
        return _voting_as_in_run(loaded, note)
    inner = loaded.model if note["ablation"] is None else _voting_as_in_run(loaded, note)
    return with_defense(inner, note["defense"], classes, f"checkpoint {loaded.path.name}")


def _voting_as_in_run(loaded: Checkpoint, note: dict[str, Any]) -> SmoothedClassifier | RandomizedClassifier:
    if "sampling" in note:
        sampled = _sampled(loaded, Sampling(**note["sampling"]))
        sampled.set_guard(note["guard"])
        return sampled
    model = loaded.smoothed
    model.voting = parse_voting(note["voting"], note["guard"])
    return model


def _sampled(loaded: Checkpoint, sampling: Sampling) -> RandomizedClassifier:
    randomized = "sampling" in as_classifier(loaded.model).describe()
    return RandomizedClassifier.of(as_classifier(loaded.model) if randomized else loaded.smoothed, sampling)

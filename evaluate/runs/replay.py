"""`--replay FILE`: a saved counterexample again, on the model that the user names. The file names none to be run."""

from __future__ import annotations

import shlex
from typing import Any

import torch
from rich.console import Console

from attacks.base import judge_of
from evaluate.cli.command import BROKEN, HELD, check_dtype
from evaluate.cli.options import Options
from evaluate.model.identity import identity_of
from evaluate.model.load import as_in_run, with_defense
from evaluate.model.own import open_of
from evaluate.runs.counterexample import Counterexample, load_counterexample, replay
from robustpatch.checkpoints import load_checkpoint, names
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.isolation import predict
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.precision import check_device


def replay_command(path: str, configuration: dict[str, Any]) -> str:
    """The command that shows the counterexample at `path` of a run of that configuration again."""
    model, checkpoint = configuration.get("model"), configuration.get("checkpoint")
    named = ["--model", str(model)] if model is not None else ["--checkpoint", str(checkpoint)]
    for option in ("weights", "input_size", "mean", "std"):
        if configuration.get(option) is not None:
            named += [f"--{option.replace('_', '-')}", str(configuration[option])]
    if model is None and checkpoint in names():  # told by the file: what the package ships runs no code of others
        named = []
    return f"robustpatch attack-vs-cert {shlex.join([*named, '--replay', path])}"


def show_again(path: str, options: Options, console: Console) -> int:
    """Show a counterexample again with the model that `options` name; the status, 1 when it still stands.

    The file says of what it was found, and that is held against the model named: the SHA-256 of a checkpoint's file,
    the weights of a module. Raises `InvalidInput` where no model is named or it is another one.
    """
    example = load_counterexample(path)
    try:
        model = _model(path, example, options, lambda text: _say(console, text))
        return _judged(example, model, options.device, console)
    except InvalidInput:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InvalidInput(
            f"replay is {path}, whose images or settings do not fit the model ({type(error).__name__}: "
            f"{one_line(error, 200)}); name the model that it was found with"
        ) from error


def _model(path: str, example: Counterexample, options: Options, say: Any) -> torch.nn.Module:
    claim, device = example.configuration, check_device(options.device)
    dtype = claim.get("dtype", "float32")
    precision = check_dtype(dtype if isinstance(dtype, str) else repr(dtype))
    if "checkpoint" in claim:
        name, given = _checkpoint(path, claim, options), options.checkpoint != Options.checkpoint
        loaded = load_checkpoint(options.checkpoint if given else name)
        if loaded.sha256 != claim.get("checkpoint_sha256"):
            raise InvalidInput(
                f"checkpoint {options.checkpoint if given else name} is not the one that {path} was found with, or has "
                "changed since; restore that file"
            )
        if tuple(example.x.shape) != tuple(loaded.config["image_shape"]):
            raise InvalidInput(
                f"replay is {path}, with an image of {tuple(example.x.shape)}; the checkpoint's images are "
                f"{tuple(loaded.config['image_shape'])}: the file is damaged"
            )
        return as_in_run(loaded, claim).to(device, precision)
    if "model" not in claim:
        raise InvalidInput(
            f"replay is {path}, found with a model of Python's own; use robustpatch.evaluate.runs.counterexample.replay"
        )
    if options.model is None:
        raise InvalidInput(
            f"replay is {path}, found with the model {one_line(repr(claim['model']), 200)}; a file names no code to "
            "run: name the model, if you trust it, with --model"
        )
    opened = open_of(options, example.x.shape[1:], device, dtype)
    model = opened.model
    for key, value in opened.note.items():
        if claim.get(key) != value:
            raise InvalidInput(
                f"model {options.model} is not the one that {path} was found with: {key.replace('_', ' ')} was "
                f"{one_line(repr(claim.get(key)), 200)} and is {one_line(repr(value), 200)}; restore the file, or name "
                "the options of then"
            )
    if claim.get("defense") is not None and "defense" not in as_classifier(model).describe():
        model = with_defense(model, claim["defense"], len(claim["class_names"]), f"model {options.model}")
    identity = identity_of(model, module=opened.module)
    if identity["model_sha256"] != claim.get("model_sha256"):
        raise InvalidInput(
            f"model {options.model} is not the one that {path} was found with, or has changed since; restore its "
            "weights"
        )
    then = claim.get("model_files", {})
    files = identity.get("model_files", then)
    changed = sorted(name for name in {**then, **files} if then.get(name) != files.get(name))
    if changed and then:
        say(f"changed since {path} was saved: {', '.join(changed)}; this is of the model as it is now")
    return model


def _checkpoint(path: str, claim: dict[str, Any], options: Options) -> str:
    """The name of the checkpoint to take: the user's, or one that the package ships."""
    name = claim["checkpoint"]
    if options.model is not None:
        raise InvalidInput(
            f"model is {options.model}, but {path} was found with the checkpoint {one_line(repr(name), 200)}; drop "
            "--model"
        )
    if options.checkpoint == Options.checkpoint and name not in names():
        raise InvalidInput(
            f"replay is {path}, found with the checkpoint {one_line(repr(name), 200)}, which is none of the "
            "package's; name its file with --checkpoint"
        )
    return str(name)


def _judged(example: Counterexample, model: torch.nn.Module, device: str, console: Console) -> int:
    classifier = as_classifier(model)
    votes = voting_classifier(classifier)
    outcome, certified = replay(example, model)
    _say(console, f"image {example.index}, {example.threat} patch at {example.corners.tolist()}, by {example.attack}")
    for name, image in (("clean", example.x), ("attacked", example.x_adv)):
        image = image[None].to(device)
        counts = "" if votes is None else f"votes {votes.votes(image.clone()).counts[0].tolist()}, "
        _say(console, f"{name}: {counts}prediction {int(predict(judge_of(classifier), image))}")
    stands = certified and bool(outcome.broken[0])
    changed = "prediction changed" if example.top_k == 1 else f"driven out of the top {example.top_k}"
    _say(
        console,
        f"certified: {certified}; inside the threat: {bool(outcome.contained[0] and outcome.in_range[0])}; {changed}: "
        f"{bool(outcome.broken[0])}",
    )
    sampling = classifier.describe().get("sampling")
    if sampling is not None:
        _say(console, f"a certificate may be wrong with a chance of {sampling['alpha']:g}: the run counts such cases")
    _say(console, "the counterexample stands" if stands else "the counterexample does not stand here")
    return BROKEN if stands else HELD


def _say(console: Console, text: str) -> None:
    console.print(one_line(text, 10_000), soft_wrap=True)

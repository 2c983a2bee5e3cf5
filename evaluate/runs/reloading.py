"""The model and the images of a finished run, loaded again, and known to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from evaluate.cli.options import Options
from evaluate.model.identity import weights_sha256
from evaluate.model.load import subject_of
from evaluate.runs.completed_run import CompletedRun
from evaluate.runs.run_identity import images_sha256
from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.options import read
from robustpatch.precision import check_device
from robustpatch.storage.store import Store
from robustpatch.storage.toml import read_toml


def stored_options(run: CompletedRun) -> dict[str, Any]:
    """The options by which a run says that it can be repeated. Raises `InvalidInput` where it kept none."""
    local = Store(run.output).local
    if local is None:
        raise InvalidInput(f"run is {run.output}, whose options are read from a file; copy it into a folder")
    return read_toml(local / "run.toml", "run.toml")


def options_of(
    where: str, given: Mapping[str, Any], model: str | None = None, data_root: Path | None = None
) -> Options:
    """The options of a run as a file has them, in words `where`: that file names no code to run, so a model of the
    user's own has to be named by the caller, who may say where the images are, too. Raises `InvalidInput`.
    """
    options = read(Options, given, f"{where}: ")
    if options.model is not None and model is None:
        raise InvalidInput(
            f"{where} is of the model {options.model!r}; a file names no code to run: name the model, if you trust it, "
            "with --model"
        )
    return replace(options, model=model, data_root=data_root or options.data_root)


def loaded_again(where: str, claim: Mapping[str, Any], options: Options) -> tuple[nn.Module, ImageSet]:
    """The model and the images of a run, in words `where`, whose run.json is `claim`. Raises `InvalidInput` where they
    are others by now.
    """
    device, images, total = check_device(options.device), options.load(), int(claim["num_images"])
    if len(images) < total or images_sha256(images, total) != claim["images_sha256"]:
        raise InvalidInput(f"{where} is of other images than {options.dataset} has here; restore them")
    model = subject_of(options, images, device).model
    if weights_sha256(model) != claim["model_sha256"]:
        raise InvalidInput(f"{where} is of another model than its options name here; restore its weights")
    return model, images

"""What the command lines share: exit statuses, a refusal on one line, and what a summary says of its circumstances."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from robustpatch.data import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.zoo import Checkpoint

HELD, BROKEN, WRONG_CALL, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("robustpatch", "torch", "torchvision", "numpy", "kornia", "adversarial-robustness-toolbox", "pyarrow")


def status_of(run: Callable[[Console], int]) -> int:
    """The exit status that `run` returns, or that of how it ended. `run` is given a console on stderr.

    2: a wrong call, refused with `InvalidInput`: one line. 130: interrupted. 3: a defect, shown with its traceback.
    """
    errors = Console(stderr=True)
    try:
        return run(errors)
    except InvalidInput as error:
        errors.print(f"error: {error}", style="red", highlight=False, soft_wrap=True, markup=False)
        return WRONG_CALL
    except KeyboardInterrupt:
        errors.print("interrupted; the finished batches are kept, and the same command resumes the run")
        return INTERRUPTED
    except Exception:
        errors.print_exception()
        errors.print("internal error: please report it with the lines above")
        return INTERNAL


def check_dtype(name: str) -> torch.dtype:
    """The precision of that name. Raises `InvalidInput`."""
    if name not in DTYPES:
        raise InvalidInput(f"dtype is {name!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def check_fit(name: str, checkpoint: Checkpoint, images: ImageSet) -> None:
    """Refuse a checkpoint, called `name`, for images of another shape or with another number of classes."""
    shape, classes = tuple(checkpoint.config["image_shape"]), len(checkpoint.config["class_names"])
    if shape != images.image_shape or len(images.class_names) != classes:
        raise InvalidInput(
            f"dataset {images.name} has {images.image_shape} images of {len(images.class_names)} classes, but "
            f"checkpoint {name} was trained for {shape} and {classes}; name a checkpoint for this dataset"
        )


def check_number(num_images: int, images: ImageSet) -> None:
    """Refuse more images than there are."""
    if num_images > len(images):
        raise InvalidInput(
            f"num_images is {num_images}, but {images.name} has {len(images)} {images.split} images; take at most those"
        )


def circumstances(device: str) -> dict[str, Any]:
    """The command, the versions of what it leans on, and the machine."""
    return {
        "command": shlex.join(sys.argv),
        "versions": {name: version(name) for name in PACKAGES},
        "python": sys.version,
        "threads": torch.get_num_threads(),
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def progress_bar(console: Console) -> Progress:
    """What is being done, how far it is, and for how long it has been."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )

"""A process of a cluster that does batches of a run, once it is known to be like the one that asks."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from evaluate.model.identity import package_code
from evaluate.model.own import without_gradients
from evaluate.runs.run_identity import run_of
from evaluate.runs.runner import Job
from robustpatch import precision
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.calibration import calibrate_guard
from robustpatch.classifiers.smoothed import guarded_classifier
from robustpatch.cli.status import ended_by
from robustpatch.errors import InvalidInput

PACKAGES = ("torch", "numpy", "kornia", "adversarial-robustness-toolbox")


class Worker:
    """A process of the cluster that does batches of one job."""

    def prepare(self, setting: tuple[Job, Tensor, dict[str, object]]) -> dict[str, Any]:
        """Get ready, or refuse with `InvalidInput`; says where this is."""
        job, sample, wanted = setting
        host, device = platform.node(), precision.check_device(job.settings.device)
        torch.set_num_threads(int(str(wanted["threads"])))
        here = conditions(device)
        differing = [f"{name} {here[name]} instead of {wanted[name]}" for name in wanted if here[name] != wanted[name]]
        if differing:
            raise InvalidInput(
                f"ray has a worker on {host} with {', '.join(differing)}, which may give other records; install there "
                "what is installed here"
            )
        if run_of(job.store) != job.run:
            raise InvalidInput(
                f"output is {job.store}, which the worker on {host} does not see; name one that all machines share"
            )
        model = without_gradients(job.model.to(device))
        smoothed = guarded_classifier(as_classifier(model))
        about = {
            "host": host,
            "device": torch.cuda.get_device_name() if takes_gpu(device) else torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "deviation": None if smoothed is None else calibrate_guard(smoothed, sample.to(device)),
        }
        self.job = replace(job, model=model, worker=about)
        return dict(about)

    def do(self, x: Tensor, y: Tensor, first: int) -> None:
        """Do a batch. What would end this process from within the model's code is an error like any other: a worker
        that is gone would be replaced.
        """
        try:
            self.job.do(x, y, first)
        except (SystemExit, KeyboardInterrupt) as error:
            raise RuntimeError(ended_by(error)) from error


def conditions(device: str) -> dict[str, object]:
    """Settings that have to be equal for two processes to give the same records on the same kind of device."""
    return {
        "code": package_code(),
        **{name: version(name).partition("+")[0] for name in PACKAGES},  # +cpu and +cu128 are of one version
        "threads": torch.get_num_threads(),
        "precision": precision.settings(torch.device(device).type),
    }


def takes_gpu(device: str) -> bool:
    """True where a run on this device asks Ray for GPUs. Raises `InvalidInput` for one of several: Ray says which."""
    if torch.device(device).type != "cuda":
        return False
    if torch.device(device).index is not None:
        raise InvalidInput(f"device is {device}, but Ray gives each worker a GPU of its own; use --device cuda")
    return True

"""A run that takes less than a second, in this process or in one that can be killed."""

from __future__ import annotations

import io
import os
import signal
from dataclasses import fields, replace
from pathlib import Path

import torch

from attacks import ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate
from evaluate.runs.records import Record, read_records
from robustpatch.ablations.kinds import Columns
from robustpatch.threats import PatchThreat, Threat
from tests.attacks.toys import Level, images, smoothed
from tests.evaluate.planted import image_set
from tests.killed import server

ATTACKS = (PatchPGD(steps=1, restarts=1), ExhaustivePGD(steps=1, rounds=0))
NUMBER, BATCH, SQUARE = 6, 2, PatchThreat(2, 2)


def scene():
    """Black, grey and white images with any labels: certified and not, classified rightly and wrongly."""
    x = images(NUMBER, (4, 8))
    x[0::3], x[1::3, :, :, 3:7] = 0, 0
    return image_set(x, torch.arange(NUMBER) % 2 * 2, 3)


def evaluated(model, output, attacks=(), *, data, threat: Threat, **given) -> list[Record]:
    """The records of a run over all images of the data, none of them shown in a gallery; what is `given` besides are
    settings, or else options of `evaluate`.
    """
    named = {field.name for field in fields(Settings)} & given.keys()
    settings = {"num_images": len(data), "gallery": 0} | {name: given.pop(name) for name in named}
    return evaluate(model.eval(), data, threat, attacks, Settings(**settings), output, **given)


def run(output, *, attacks=ATTACKS, threat: Threat = SQUARE, **given) -> list[Record]:
    given = {"batch_size": BATCH, "certified_budget": 300, **given}
    return evaluated(smoothed(Level(3), Columns(1), 3), output, attacks, data=scene(), threat=threat, **given)


def timeless(records: list[Record]) -> list[Record]:
    """The records without the one thing in which equal runs differ."""
    return [replace(r, attacks=[replace(a, seconds=0.0) for a in r.attacks]) for r in records]


def found(output) -> list[Record]:
    return timeless(read_records(output))


def contents(output) -> dict[str, bytes]:
    """The shards that are there."""
    return {path.name: path.read_bytes() for path in Path(output).glob("records/*.parquet")}


def process(output, fatal: int | None = None):
    """Start the run in a process of its own, which kills itself before the step numbered `fatal` of those that put
    files in their places, or in the middle of the write that it is about.
    """
    started = server().Process(target=_child, args=(str(output), fatal))
    started.start()
    return started


def _child(output: str, fatal: int | None) -> None:
    torch.set_num_threads(1)
    if fatal is not None:
        _plant(fatal)
    run(output)


def _plant(fatal: int) -> None:
    from robustpatch.storage import store

    count = 0

    def step(do):
        def done(*arguments, **options):
            nonlocal count
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return do(*arguments, **options)

        return done

    class Halves(io.FileIO):
        """A file that may die with half of what was to be written."""

        def write(self, content) -> int:
            half = len(content) // 2
            return super().write(content[:half]) + step(super().write)(content[half:])

    for name in ("fsync", "link", "replace"):
        setattr(os, name, step(getattr(os, name)))
    store.open = step(Halves)

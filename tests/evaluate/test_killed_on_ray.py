"""Workers of a Ray, and the driver, that die between any two steps of writing: the run ends as if none had."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch

from attacks import PatchPGD
from evaluate import Settings, evaluate
from evaluate.runs import cluster as module
from evaluate.runs.cluster import Cluster
from robustpatch.ablations.kinds import Columns
from robustpatch.storage.locks import held
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.small_runs import BATCH, NUMBER, scene, timeless
from tests.killed import Steps, descendants, running

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
_dying: list[Steps] = []  # of this process


@dataclass(frozen=True)
class Mortal(PatchPGD):
    """An attack after which the n-th process that calls it dies at step n in `folder`, for n up to `most`."""

    folder: str = ""
    marks: str = ""
    most: int = 0

    def __call__(self, model, x, y, threat, *, generator):
        if not _dying:
            _dying.append(Steps(self.folder, self._number()))
        return super().__call__(model, x, y, threat, generator=generator)

    def _number(self) -> int | None:
        for number in count(1):
            try:
                Path(self.marks, str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return number if number <= self.most else None
        return None


@pytest.mark.slow
def test_workers_killed_at_any_step(tmp_path, monkeypatch):
    """Records are the local run's, and nothing half written is left."""
    monkeypatch.setattr(module, "LOSSES", 99)
    marks, output = tmp_path / "marks", tmp_path / "ray"
    marks.mkdir()
    attacks = (Mortal(steps=1, restarts=1, folder=str(output), marks=str(marks), most=16),)
    settings, notices = Settings(NUMBER, BATCH, 300, 0, gallery=6), []
    model, threat = smoothed(Level(3), Columns(1), 3), PatchThreat(2, 2)
    workers = Cluster(num_workers=2, on_notice=notices.append)
    records = evaluate(model, scene(), threat, attacks, settings, output, workers=workers)
    assert sum("a worker was lost with images" in one for one in notices) == 16
    plain = (PatchPGD(steps=1, restarts=1),)
    assert timeless(records) == timeless(evaluate(model, scene(), threat, plain, settings, tmp_path / "local"))
    found, local = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (output, tmp_path / "local"))
    assert found == local
    exhibits = sorted(path.name for path in (output / "exhibits").iterdir())
    assert exhibits
    for name in exhibits:
        assert (output / "exhibits" / name).read_bytes() == (tmp_path / "local" / "exhibits" / name).read_bytes()


@dataclass(frozen=True)
class Traitor(PatchPGD):
    """An attack after whose first call in a worker the driver dies at step n of what that worker writes in `folder`;
    `order` holds n and the driver's process. The worker goes on until Ray ends it.
    """

    folder: str = ""
    order: str = ""

    def __call__(self, model, x, y, threat, *, generator):
        if not _dying and Path(self.order).exists():
            step, driver = map(int, Path(self.order).read_text().split())
            _dying.append(Steps(self.folder, step, driver))
        return super().__call__(model, x, y, threat, generator=generator)


def scenery(output, order):
    """A run whose certificates, counterexamples and pictures are all written, by two workers or here."""
    attacks = (Traitor(steps=1, restarts=1, folder=str(output), order=str(order)),)
    settings = Settings(NUMBER, BATCH, 300, 0, gallery=6)
    return smoothed(Level(3), Columns(1), 3), scene(), PatchThreat(2, 2), attacks, settings, output


def drive(output, order, step):
    """The driver, in a process of its own."""
    Path(order).write_text(f"{step} {os.getpid()}")
    torch.set_num_threads(1)
    evaluate(*scenery(output, order), workers=Cluster(num_workers=2))


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.slow
@pytest.mark.timeout(3_600)
def test_the_driver_killed_at_any_step_of_its_workers(tmp_path):
    """Repeated at once, here and on another Ray in turn: equal records and files, nothing half written, no process of
    the killed Ray left, and no lock.
    """
    whole, order, output = tmp_path / "whole", tmp_path / "order", tmp_path / "output"
    expected = timeless(evaluate(*scenery(whole, order)))
    server, deaths = multiprocessing.get_context("forkserver"), 0
    for step in count(1):
        shutil.rmtree(output, ignore_errors=True)
        driver, left = server.Process(target=drive, args=(output, order, step)), dict[int, str]()
        driver.start()
        while driver.is_alive():
            left |= descendants(driver.pid)
            driver.join(0.05)
        order.unlink()
        if driver.exitcode == 0:  # no worker does so many steps
            break
        assert driver.exitcode == -signal.SIGKILL
        deaths += 1
        given = {} if step % 2 else {"workers": Cluster(num_workers=2)}
        assert timeless(evaluate(*scenery(output, order), **given)) == expected, step
        assert names(output) == names(whole), step
        for name in names(whole):
            if name.startswith(("exhibits/", "counterexamples/")):
                assert (output / name).read_bytes() == (whole / name).read_bytes(), (step, name)
        while any(running(pid) for pid in left):  # or the test's own limit ends it
            time.sleep(0.1)
        assert names(output) == names(whole), step  # nor has one of them written since
        with held(output, alone=True):
            pass
    assert deaths > 20

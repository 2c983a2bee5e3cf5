"""Workers of a Ray, and the driver, that die between any two steps of writing: the run ends as if none had."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from dataclasses import dataclass
from functools import partial
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
from tests.evaluate.small_runs import BATCH, NUMBER, found, scene, timeless
from tests.killed import Steps, running, server

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
_dying: list[Steps] = []  # of this process
SERVER = multiprocessing.get_context("forkserver")


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
    assert names(output) == names(tmp_path / "local")
    exhibits = sorted(path.name for path in (output / "exhibits").iterdir())
    assert exhibits
    for name in exhibits:
        assert (output / "exhibits" / name).read_bytes() == (tmp_path / "local" / "exhibits" / name).read_bytes()


@dataclass(frozen=True)
class Traitor(PatchPGD):
    """An attack after whose first call in a worker the driver dies at step n of what that worker writes in `folder`.
    The worker goes on until somebody ends it. The file `order` holds n and the driver's process.
    """

    folder: str = ""
    order: str = ""

    def __call__(self, model, x, y, threat, *, generator):
        if not _dying and Path(self.order).exists():
            step, driver = map(int, Path(self.order).read_text().split())
            Path(self.order).with_name(f"worker {os.getpid()}").touch()
            _dying.append(Steps(self.folder, step, driver))
        return super().__call__(model, x, y, threat, generator=generator)


class Place:
    """A folder for runs whose drivers are killed, and the run that nobody disturbs."""

    def __init__(self, root):
        server()
        self.output, self.order, self.whole = root / "output", root / "order", root / "whole"
        self.expected = timeless(evaluate(*self.given(self.whole)))

    def given(self, output):
        attacks = (Traitor(steps=1, restarts=1, folder=str(output), order=str(self.order)),)
        settings = Settings(NUMBER, BATCH, 300, 0, gallery=6)
        return smoothed(Level(3), Columns(1), 3), scene(), PatchThreat(2, 2), attacks, settings, output

    def drive(self, step, workers):
        """The exit status of a driver that dies at this step of its workers, and these."""
        shutil.rmtree(self.output, ignore_errors=True)
        driver = SERVER.Process(target=_drive, args=(self, step, workers))
        driver.start()
        driver.join()
        self.order.unlink()
        noted = list(self.output.parent.glob("worker *"))
        for marker in noted:
            marker.unlink()
        return driver.exitcode, [int(marker.name.partition(" ")[2]) for marker in noted]

    def check(self, workers, /, **given):
        """The run that is repeated at once is the undisturbed one, and stays so until the workers have gone; then
        nothing half written is left, and no lock.
        """
        assert timeless(evaluate(*self.given(self.output), **given)) == self.expected
        while any(map(running, workers)):  # or the test's own limit ends it
            time.sleep(0.05)
        assert found(self.output) == self.expected
        assert names(self.output) == names(self.whole)
        for name in names(self.whole):
            if name.startswith(("exhibits/", "counterexamples/")):
                assert (self.output / name).read_bytes() == (self.whole / name).read_bytes(), name
        with held(self.output, alone=True):
            pass


def _drive(place, step, workers):
    torch.set_num_threads(1)
    place.order.write_text(f"{step} {os.getpid()}")
    evaluate(*place.given(place.output), workers=workers())


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _elsewhere():
    return _by_another


def _by_another(job, images, missing, on_progress):
    """A worker of which nobody knows when its driver is dead: it does all that it was to do."""
    worker = SERVER.Process(target=_work, args=(job, images, missing))
    worker.start()
    worker.join()


def _work(job, images, missing):
    torch.set_num_threads(1)
    for batch in missing:
        job.do(*images.batch(batch), batch.start)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 25])
def test_the_driver_killed_and_its_worker_never_told(tmp_path, step):
    """It works on beside the next run, in the same output."""
    place = Place(tmp_path)
    status, workers = place.drive(step, _elsewhere)
    assert status == -signal.SIGKILL
    assert len(workers) == 1
    place.check(workers)


def _start(ray, tries=9):
    """Start a Ray, which gives up after half a minute on a busy machine."""
    for left in reversed(range(tries)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
                return
            except Exception:
                ray.shutdown()
                if not left:
                    raise
            gc.collect()  # now, what warns of processes of the one that did not start


@pytest.mark.slow
@pytest.mark.timeout(7_200)
def test_the_driver_killed_at_any_step_of_its_worker(tmp_path):
    """The run that is repeated at once, here and on the same Ray in turn, is the undisturbed one; Ray ends the worker
    of the one that was killed.
    """
    ray = pytest.importorskip("ray")
    place, deaths = Place(tmp_path), 0
    _start(ray)
    try:
        address = ray.get_runtime_context().gcs_address
        for step in count(1):
            status, workers = place.drive(step, partial(Cluster, address, 1))
            assert len(workers) == 1
            if status == 0:  # no worker does so many steps
                break
            assert status == -signal.SIGKILL
            deaths += 1
            again = {} if step % 3 else {"workers": Cluster(num_workers=1)}
            place.check(workers, **again)
    finally:
        ray.shutdown()
    assert deaths > 20

"""Ray workers give the records of the local run, whoever of them is lost, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
from attacks import ExhaustivePGD, PatchPGD
from evaluate import Settings
from evaluate.runs import cluster as module
from evaluate.runs.cluster import LOSSES, Cluster
from evaluate.runs.records import read_records, read_workers, shard_name
from evaluate.runs.run_identity import claim
from evaluate.runs.runner import Job
from evaluate.runs.worker import Worker, conditions
from robustpatch.ablations.kinds import Columns
from robustpatch.cli.status import Interrupted, Terminated, signals
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.calls import call, refused
from tests.evaluate.small_runs import run, scene, timeless
from tests.killed import descendants

pytest.importorskip("ray", reason="Ray has no wheel for this Python")


@dataclass(frozen=True)
class Deadly(PatchPGD):
    """Kills the process that calls it first, as the memory's guard would."""

    marker: str = ""

    def __call__(self, model, x, y, threat, *, generator):
        try:
            Path(self.marker).touch(exist_ok=False)
        except FileExistsError:
            return super().__call__(model, x, y, threat, generator=generator)
        os.kill(os.getpid(), signal.SIGKILL)


def test_two_workers_one_of_them_killed(tmp_path):
    """Its batch is done by another; the records are the local run's, each shard written once by whoever did it."""
    attacks = (Deadly(steps=1, restarts=1, marker=str(tmp_path / "marker")), ExhaustivePGD(steps=1, rounds=0))
    notices: list[str] = []
    cluster = Cluster(num_workers=2, on_notice=notices.append)
    seen: list[int] = []
    before = set(descendants(os.getpid()))
    records = run(
        tmp_path / "ray", attacks=attacks, workers=cluster, on_progress=lambda finished, _: seen.append(finished)
    )
    assert len(notices) == 1
    assert notices[0].startswith("a worker was lost with images ")
    assert (tmp_path / "marker").exists()
    assert timeless(records) == timeless(run(tmp_path / "local", attacks=attacks))
    assert seen == sorted(seen)
    assert seen[-1] == len(records)
    made = read_workers(tmp_path / "ray")
    assert {machine["threads"] for machine in made} == {torch.get_num_threads()}
    assert all(0 <= machine["deviation"] <= 1e-6 for machine in made)
    assert not {title for pid, title in descendants(os.getpid()).items() if pid not in before and "ray" in title}


class FakeRay:
    """Workers in this process, some of whose answers are losses: what becomes of the n-th call is `fates`[n]."""

    def __init__(self, fates) -> None:
        self.fates, self.calls, self.answers, self.losses = deque(fates), 0, {}, 0
        self.cloudpickle, self.ended = self, []

    def register_pickle_by_value(self, _) -> None: ...

    def remote(self, kind):
        self.kind = kind
        return self

    def options(self, **_):
        ray = self

        class Actor:
            def remote(self):
                worker = ray.kind()
                return SimpleNamespace(prepare=Call(ray, worker.prepare), do=Call(ray, worker.do))

        return Actor()

    def put(self, value):
        return value

    def wait(self, answers, timeout=None):
        return answers[:1], answers[1:]

    def kill(self, worker):
        self.ended.append(worker)

    def get(self, answer):
        from ray.exceptions import ActorDiedError

        if self.answers[answer] == "lost":
            self.losses += 1
            raise ActorDiedError()
        return self.answers[answer]


class Call:
    """A worker's method as Ray has it."""

    def __init__(self, ray: FakeRay, do) -> None:
        self.ray, self.do = ray, do

    def remote(self, *arguments):
        fate = self.ray.fates.popleft() if self.ray.fates else True
        self.ray.calls += 1
        self.ray.answers[self.ray.calls] = self.do(*arguments) if fate else "lost"
        return self.ray.calls


def job(output, device="cpu"):
    own = {"a": "run"}
    model, chosen = smoothed(Level(3), Columns(1), 3), Settings(6, 2, 300, 0, device)
    return Job(model, PatchThreat(2, 2), (), chosen, Store(output), own, claim(output, own))


def handed_out(fates, output, workers=2):
    ray, notices, told = FakeRay(fates), [], []
    cluster = Cluster(on_notice=notices.append)
    images = scene()
    run = module._Run(cluster, ray, job(output), images, images.batch(range(2))[0], {})
    run.all(deque([range(0, 2), range(2, 4), range(4, 6)]), workers, lambda *what: told.append(what))
    return ray, notices, told


@settings(max_examples=8)
@given(fates=st.lists(st.booleans(), max_size=12), workers=st.integers(1, 3))
def test_whoever_is_lost_every_batch_is_done(fates, workers):
    """Before it was ready, in its batch or idle: with fewer losses than are taken for a fault, the run is finished."""
    lost = 0
    for n, fate in enumerate(fates):
        lost += not fate
        fates[n] = fate or lost >= LOSSES
    output = f"memory://handed-out-{uuid4()}"
    ray, notices, told = handed_out(fates, output, workers)
    assert [record.index for record in read_records(output)] == list(range(6))
    assert len(notices) == ray.losses
    assert told[0] == (0, "starting workers")
    assert [finished for finished, _ in told] == sorted(finished for finished, _ in told)


@pytest.mark.parametrize(
    ("fates", "message"),
    [
        ([False] * LOSSES, "5 workers were lost before it was ready .* smaller batch-size"),
        ([True, False] * LOSSES, "5 workers were lost with images 0 to 1 .* smaller batch-size"),
    ],
)
def test_a_batch_that_nobody_survives(fates, message, tmp_path):
    """Is not tried for ever."""
    with pytest.raises(InvalidInput, match=message):
        handed_out(fates, tmp_path, workers=1)


def test_what_another_process_did_is_not_done_again(tmp_path):
    """The driver looks before it hands out a batch."""
    own = job(tmp_path)
    own.do(*scene().batch(range(2, 4)), 2)
    shard = (tmp_path / shard_name(2, 4)).read_bytes()
    ray, _, told = handed_out([], tmp_path)
    assert ray.calls == 2 + 2  # two get ready, two batches
    assert (tmp_path / shard_name(2, 4)).read_bytes() == shard
    assert told[-1][0] <= 6


def test_a_worker_that_is_not_like_the_driver_refuses(tmp_path, monkeypatch):
    """Other code, versions or precision, or an output that it does not see: before anything is done."""
    own, wanted = job(tmp_path), conditions("cpu")
    sample = scene().batch(range(2))[0]
    worker = Worker()
    assert worker.prepare((own, sample, wanted))["deviation"] <= 1e-6
    for name, value in (("code", "other"), ("torch", "1.0"), ("precision", ("tf32",))):
        with pytest.raises(InvalidInput, match=rf"ray has a worker on .* with {name} .* instead of .*install there"):
            worker.prepare((own, sample, {**wanted, name: value}))
    with pytest.raises(InvalidInput, match=r"output is .*, which the worker on .* does not see"):
        worker.prepare((replace(own, store=Store("memory://elsewhere")), sample, wanted))
    monkeypatch.setattr("evaluate.runs.worker.calibrate_guard", lambda *_: calibrate(own.model))
    with pytest.raises(InvalidInput, match="guard"):
        worker.prepare((own, sample, wanted))


def calibrate(model):
    raise InvalidInput("scores move by more than the guard")


def test_the_error_of_a_worker_is_that_of_the_run(tmp_path):
    """A full disk there is one line here; a defect keeps its traceback."""
    from ray.exceptions import RayTaskError

    for cause in (InvalidInput("output is full"), RuntimeError("a defect")):
        ray = FakeRay([])
        ray.get = lambda _, cause=cause: (_ for _ in ()).throw(RayTaskError("do", "Traceback …", cause))
        run = module._Run(Cluster(), ray, job(tmp_path), scene(), scene().batch(range(2))[0], {})
        with pytest.raises(InvalidInput if isinstance(cause, InvalidInput) else RayTaskError):
            run.all(deque([range(2)]), 1, lambda *_: None)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_behind(how, checkpoint, tmp_path):
    """Ctrl-C ends in one line and status 130, SIGTERM with 143, and Ray with them, as it does when the driver is
    killed; the same command finishes the run."""
    given = ["--checkpoint", str(checkpoint), "--attacks", "quick", "--num-images", "24", "--batch-size", "1"]
    given += ["--ray", "--num-workers", "2", "--output", str(tmp_path)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have what is run by `&` ignore it
    run = subprocess.Popen(
        [sys.executable, "-m", "evaluate.attack_vs_cert", *given],
        cwd=Path(evaluate.__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    while run.poll() is None and not list(tmp_path.glob("records/*.parquet")):
        time.sleep(0.01)
    left = set(descendants(run.pid))
    assert len(left) > 3
    (os.killpg if how == signal.SIGINT else os.kill)(run.pid, how)
    said = run.communicate()[1]
    assert run.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[how], said
    if how != signal.SIGKILL:
        word = "interrupted" if how == signal.SIGINT else "terminated"
        assert said.splitlines()[-1].startswith(f"{word}; the finished batches are kept")
    while any(Path(f"/proc/{pid}/stat").exists() for pid in left):  # or the test's own limit ends it
        time.sleep(0.1)
    before = {path: path.read_bytes() for path in tmp_path.glob("records/*.parquet")}
    assert 0 < len(before) < 24
    assert call(*given).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("where", ["wait", "get", "put"])
def test_a_signal_raises_nothing_within_ray(number, kind, where, tmp_path, monkeypatch):
    """Which would end in a crash of its compiled code: Ray returns from what it does, and then the run is left. No
    worker stays.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    others = {one: signal.signal(one, handler) for one, handler in usual.items()}
    own, ray, survived = job(tmp_path), FakeRay([]), []

    def interrupted(real):
        def call(*arguments, **options):
            os.kill(os.getpid(), number)
            survived.append(True)
            return real(*arguments, **options)

        return call

    @contextmanager
    def connected(*_):
        yield ray

    monkeypatch.setattr(Cluster, "_connected", connected)
    monkeypatch.setattr(Cluster, "_room", lambda *_: 2)
    monkeypatch.setattr(ray, where, interrupted(getattr(ray, where)))
    try:
        with pytest.raises(kind), signals():
            Cluster()(own, scene(), [range(0, 2), range(2, 4), range(4, 6)], lambda *_: None)
    finally:
        for one, handler in others.items():
            signal.signal(one, handler)
    assert survived == [True]
    assert len(ray.ended) == 2
    assert len(list(tmp_path.glob("records/*"))) < 3


def test_wrong_calls(checkpoint, tmp_path, monkeypatch):
    """Each is one line, before a model is loaded or a Ray started."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", tmp_path / "new"]
    refused(call(*given, "--num-workers", 2), "num_workers is 2, but the run is in this process; add --ray")
    refused(call(*given, "--ray", "--num-workers", 0), "num_workers is 0; it must be at least 1")
    refused(call(*given, "--device", "cuda:1", "--ray"), "device is cuda:1, but Ray gives each worker a GPU of its own")
    refused(call(*given, "--ray", "127.0.0.1:1"), "ray is 127.0.0.1:1, where no cluster answers")
    refused(call(*given, "--ray", "nonsense"), "ray is nonsense, where no cluster answers")
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    refused(call(*given, "--ray"), "ray is local, but Ray is not here; pip install 'robustpatch[ray]'")
    assert not list(tmp_path.glob("new/records/*"))


def test_a_ray_that_does_not_start(checkpoint, tmp_path, monkeypatch):
    """On a busy machine Ray gives up after half a minute, with a plain exception: one line, and nothing is lost."""

    def late(**_):
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr("ray.init", late)
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", tmp_path]
    refused(call(*given, "--ray"), "ray is local, but none could be started here (The current node timed out during")
    assert call(*given).exit_code == 0


def test_a_model_on_a_device_stays_there(tmp_path):
    """What is sent to the workers is a copy."""
    own = job(tmp_path)
    before = {name: tensor.data_ptr() for name, tensor in own.model.state_dict().items()}
    ray = FakeRay([])
    sent, _, _ = module._Run(Cluster(), ray, own, scene(), scene().batch(range(2))[0], {}).setting
    assert sent.model is not own.model
    assert {name: tensor.data_ptr() for name, tensor in own.model.state_dict().items()} == before

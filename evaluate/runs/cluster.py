"""The same run on a Ray cluster: batches are handed to workers one at a time, and those of a lost worker to another."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from evaluate.cli.command import LOCAL_RAY
from evaluate.runs.runner import Job, Progress
from evaluate.runs.worker import Worker, conditions, takes_gpu
from robustpatch import precision
from robustpatch.cli.deferring import Deferred
from robustpatch.clone import OURS
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput

_LOOK_EVERY = 0.2  # seconds between two looks whether a signal has arrived
LOSSES = 5  # of workers over one batch, or before they were ready in a row: then it is not the machine's fault


@dataclass
class Cluster:
    """Workers for `evaluate`: each holds the model, asks for a GPU of its own if the run's device is one, computes with
    as many threads as this process, and writes its shards to the run's output itself.

    `address` is "local", for a Ray of our own that ends with the run; "auto"; or HOST:PORT of a cluster. `num_workers`
    is as many as there is room for unless given. Workers that are lost are replaced, and their images done again. A
    worker whose code, versions or precision differ from those here, that does not see the output, or whose scores move
    by more than the guard refuses the run with `InvalidInput` before it does anything. What each says of itself is kept
    with its records (`records.read_workers`).
    """

    address: str = LOCAL_RAY
    num_workers: int | None = None
    on_notice: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise InvalidInput(f"num_workers is {self.num_workers}; it must be at least 1")
        if find_spec("ray") is None:
            raise InvalidInput(f"ray is {self.address}, but Ray is not here; pip install 'robustpatch[ray]'")

    @classmethod
    def of(
        cls, address: str | None, num_workers: int | None, device: str, on_notice: Callable[[str], None]
    ) -> Cluster | None:
        """The cluster that a command line asks for, None for none; and a look at whether it can have the device."""
        if address is None and num_workers is not None:
            raise InvalidInput(f"num_workers is {num_workers}, but the run is in this process; add --ray or drop it")
        if address is None:
            return None
        takes_gpu(device)
        if address == LOCAL_RAY:
            precision.check_device(device)
        return cls(address, num_workers, on_notice)

    def __call__(self, job: Job, images: ImageSet, missing: Sequence[range], on_progress: Progress) -> None:
        """Do the missing batches, and return. No worker is left behind, however this ends: Ctrl-C and SIGTERM raise
        nothing within Ray, which does not survive that, but as soon as it can be left.
        """
        gpu = takes_gpu(job.settings.device)
        needs = {"num_cpus": torch.get_num_threads(), "num_gpus": int(gpu)}
        sample = images.batch(range(min(8, job.settings.num_images, len(images))))[0]
        with Deferred(_disarm) as signals, self._connected(needs) as ray:
            signals.listen()
            signals.check()
            workers = min(self._room(ray, needs), len(missing))
            run = _Run(self, ray, job, images, sample, needs)
            try:
                run.all(deque(missing), workers, on_progress, signals.check)
            finally:
                run.end()

    @contextmanager
    def _connected(self, needs: dict[str, int]) -> Iterator[Any]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        here = ray.is_initialized()  # by the caller, whose it stays
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address == LOCAL_RAY:
            options["include_dashboard"] = False
            if self.num_workers is not None:
                options["num_cpus"] = self.num_workers * needs["num_cpus"]
        try:
            if not here:
                _reach(self.address)
                ray.init(**options)
        except (Exception, SystemExit) as error:  # Ray raises plain ones, and leaves Python
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self.address == LOCAL_RAY:
                raise InvalidInput(
                    f"ray is {LOCAL_RAY}, but none could be started here ({reason}); repeat the command when the "
                    "machine is less busy: what is finished is kept"
                ) from error
            raise InvalidInput(
                f"ray is {self.address}, where no cluster answers ({reason}); start one by `ray start --head`, or give "
                "no address to have one of this machine"
            ) from error
        try:
            yield ray
        finally:
            if not here:
                ray.shutdown()

    def _room(self, ray: Any, needs: dict[str, int]) -> int:
        """The number of workers to start: those asked for, or as many as fit."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = [(kind, needs[name]) for kind, name in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if needs[name]]
        room = sum(min(int(node.get(kind, 0) // each) for kind, each in wanted) for node in nodes)
        each = " and ".join(f"{number} {kind}" for kind, number in wanted)
        if room == 0:
            raise InvalidInput(
                f"ray is {self.address}, which has room for no worker ({each} on one machine); set OMP_NUM_THREADS "
                "lower for fewer CPUs, use --device cpu, or add machines"
            )
        if self.num_workers is not None and self.num_workers > room:
            self.on_notice(f"{room} of {self.num_workers} workers find room ({each} each); the others wait for it")
        return self.num_workers or room


class _Run:
    """The loop of one run: who does what, and what is left."""

    def __init__(self, cluster: Cluster, ray: Any, job: Job, images: ImageSet, sample: Tensor, needs: dict) -> None:
        self.cluster, self.ray, self.images, self.job = cluster, ray, images, job
        self.actor = ray.remote(Worker).options(**needs)
        _take_along(ray, job.model)
        kept = replace(job, model=deepcopy(job.model).to("cpu"))
        self.setting = ray.put((kept, sample, conditions(job.settings.device)))
        self.doing: dict[Any, tuple[Any, range | None]] = {}  # answer to come -> worker, batch (None: getting ready)
        self.workers: list[Any] = []
        self.free: list[Any] = []
        self.lost: Counter[range | None] = Counter()

    def start(self) -> None:
        worker = self.actor.remote()
        self.workers.append(worker)
        self.doing[worker.prepare.remote(self.setting)] = (worker, None)

    def all(
        self,
        waiting: deque[range],
        workers: int,
        on_progress: Progress,
        check_signals: Callable[[], None] = lambda: None,
    ) -> None:
        """Have so many workers do all that is waiting; between any two answers, `check_signals` may end it."""
        finished, whole = 0, sum(map(len, waiting))
        for _ in range(workers):
            self.start()
        while finished < whole:
            while waiting and self.free:
                finished += self.hand_out(waiting.popleft())
            busy = sum(batch is not None for _, batch in self.doing.values())
            on_progress(finished, f"{busy} of {workers} workers" if busy else "starting workers")
            if not self.doing:
                continue
            done: list[Any] = []
            while not done:
                done, _ = self.ray.wait(list(self.doing), timeout=_LOOK_EVERY)
                check_signals()
            worker, batch = self.doing.pop(done[0])
            if not self.answered(done[0], batch):
                if batch is not None:
                    waiting.appendleft(batch)
                if waiting and not self.free:
                    self.start()
                continue
            finished += 0 if batch is None else len(batch)
            self.free.append(worker)

    def end(self) -> None:
        """Stop every worker, whatever it does."""
        for worker in self.workers:
            self.ray.kill(worker)

    def hand_out(self, batch: range) -> int:
        """Give the batch to a free worker; the number of its images if another process has done it meanwhile."""
        if self.job.damage(batch) is None:
            return len(batch)
        worker = self.free.pop()
        self.doing[worker.do.remote(*self.images.batch(batch), batch.start)] = (worker, batch)
        return 0

    def answered(self, answer: Any, batch: range | None) -> bool:
        """Return whether the worker did its task; False where it was lost. Its own errors are raised."""
        from ray.exceptions import RayError, RayTaskError

        try:
            self.ray.get(answer)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, InvalidInput) else error from None
        except RayError as error:
            self.lost[batch] += 1
            what = "before it was ready" if batch is None else f"with images {batch.start} to {batch.stop - 1}"
            if self.lost[batch] >= LOSSES:
                raise InvalidInput(
                    f"{LOSSES} workers were lost {what} (the last: {_first_line(error)}); it may take less memory with "
                    "a smaller batch-size or fewer workers a machine"
                ) from error
            self.cluster.on_notice(f"a worker was lost {what}; another takes its place")
            return False
        if batch is None:
            self.lost[None] = 0
        return True


def _disarm() -> None:
    """While it connects, Ray has a handler of SIGTERM that also sets an alarm, by which the process would be aborted
    after three seconds, before it could end in order.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(0)


def _reach(address: str) -> None:
    """Raises `OSError` where nothing answers at HOST:PORT; Ray itself would try for minutes and then leave Python."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _take_along(ray: Any, model: torch.nn.Module) -> None:
    """Have classes sent with the model that no installed package provides: those of a file of the user's own."""
    installed = {*packages_distributions(), *OURS}
    for name in {type(part).__module__ for part in model.modules()}:
        if name.partition(".")[0] not in installed and name in sys.modules:
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

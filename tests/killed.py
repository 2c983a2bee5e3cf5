"""Commands in processes of their own that die at a chosen step of what they write, and what such a process leaves.

A step is each file operation inside the folder of the run: to make a folder, open a file for writing, write it, send it
to the disk, name it, link it, remove it. A process that is to die at step n sends itself SIGKILL just before that step,
of a write in its middle.
"""

from __future__ import annotations

import errno
import io
import locale
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import PIL
import torch

PRELOADED = [
    *(f"PIL.{name}" for name in PIL._plugins),
    "attacks",
    "evaluate.attack_vs_cert",
    "evaluate.audit.__main__",
    "evaluate.compare",
    "evaluate.curve",
    "evaluate.leaderboard.__main__",
    "evaluate.learning",
    "evaluate.report.__main__",
    "evaluate.sweep.__main__",
    "jinja2.ext",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "pyarrow.dataset",
    "robustpatch.recipe",
    "robustpatch.train",
    "tests.evaluate.small_runs",
    "tests.killed",
    "torch._dynamo",
]  # whatever a command imports, or does only once, before it is forked


def server() -> multiprocessing.context.ForkServerContext:
    """Processes that are forked from one that has imported what commands import: one such for all tests of a worker."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


_NAMING = {"os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1, "os.link": 1}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Command:
    """A command line, called in the folder of a run; `again` is added to repeat it where it did not end, and `status`
    how it ends by itself. `unnamed`: on a system where files need no name while they are written, if this is one.
    `encoding`: of its console; where it is not UTF-8, the locale is C, by which files are ASCII unless told.
    `forked`: what is for workers on Ray is done by a fork, whose steps are not counted.
    """

    module: str
    arguments: tuple[str, ...]
    again: tuple[str, ...] = ()
    status: int = 0
    unnamed: bool = True
    encoding: str = "utf-8"
    forked: bool = False


@dataclass(frozen=True)
class Ended:
    """The end of a process: its exit status, negative by a signal, the steps that it did, the last of them by which a
    file got its name, and what it said.
    """

    status: int
    steps: int
    named: int
    said: str


def start(
    command: Command, folder: Path, *, fatal: int | None = None, full: int | None = None, repeated: bool = False
) -> "Process":
    """Start the command in the folder, to die at the step numbered `fatal`, from 1 on, or to find the disk full from
    step `full` on. Its clocks stand still: equal runs write equal files.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    folder.mkdir(exist_ok=True)
    given = [*command.arguments, *(command.again if repeated else ())]
    process = server.Process(target=_child, args=(command, given, str(folder), fatal, full))
    process.start()
    return process


def ended(process: Process, folder: Path) -> Ended:
    """Wait for its end."""
    process.join()
    assert process.exitcode is not None
    told = _beside(folder, "steps")
    steps, named = map(int, told.read_text().split()) if told.exists() else (0, 0)
    told.unlink(missing_ok=True)
    return Ended(process.exitcode, steps, named, _beside(folder, "said").read_text("utf-8", errors="replace"))


def call(command: Command, folder: Path, **how: Any) -> Ended:
    """The command from its `start` to its end."""
    return ended(start(command, folder, **how), folder)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files below the folder, by their names, and what is in them; folders hold None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def difference(one: dict[str, bytes | None], other: dict[str, bytes | None]) -> list[str]:
    """The names under which two trees differ."""
    return sorted(name for name in {*one, *other} if (name in one, one.get(name)) != (name in other, other.get(name)))


def descendants(pid: int) -> dict[int, str]:
    """The processes that this one and its children started, with their command lines."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, titles[int(entry.name)] = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    own = {pid}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return {child: titles[child] for child in own - {pid} if child in titles}


def running(pid: int) -> bool:
    """Return whether this process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


Process = multiprocessing.process.BaseProcess


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}.{what}")


def _child(command: Command, arguments: list[str], folder: str, fatal: int | None, full: int | None) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.argv = [command.module, *arguments]
    if not command.unnamed and hasattr(os, "O_TMPFILE"):
        del os.O_TMPFILE
    if command.encoding != "utf-8":
        locale.setlocale(locale.LC_ALL, "C")
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding=command.encoding)  # type: ignore[union-attr]
    said = os.open(_beside(Path(folder), "said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(said, stream)
    _stop_clocks()
    if command.forked:
        _fork_for_work()
    steps = Steps(os.path.realpath(folder), fatal, full=full)
    try:
        import_module(command.module).app(arguments)
    finally:
        _beside(Path(folder), "steps").write_text(f"{steps.done} {steps.named}")


def _stop_clocks() -> None:
    """Nothing takes any time: equal runs write equal files. Pictures in files are not drawn, which takes a second."""
    import time

    from matplotlib.figure import Figure

    from evaluate.leaderboard import rows

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, lambda: 1e6)
    rows._rate = lambda *_: 1.0
    real = Figure.savefig

    def savefig(figure, content, **options) -> None:
        if isinstance(content, io.BytesIO):
            content.write(repr(options).encode())
        else:
            real(figure, content, **options)

    Figure.savefig = savefig  # type: ignore[method-assign]


def _fork_for_work() -> None:
    """A Ray of one worker, which is started for a run and ends with it."""
    from evaluate.runs.cluster import Cluster
    from evaluate.runs.worker import Worker, conditions

    def do(job, images, missing) -> None:
        worker = Worker()
        sample = images.batch(range(min(8, job.settings.num_images)))[0]
        worker.prepare((job, sample, conditions(job.settings.device)))
        for batch in missing:
            worker.do(*images.batch(batch), batch.start)

    def work(_, job, images, missing, on_progress) -> None:
        process = multiprocessing.get_context("fork").Process(target=do, args=(job, images, missing))
        process.start()
        process.join()

    Cluster.__call__ = work


class Steps:
    """Counts the steps of this process in a folder, from now on, and ends it at the one numbered `fatal`, if any, or
    another process instead, the `victim`. From the one numbered `full` on, nothing can be written any more.
    """

    def __init__(self, folder: str, fatal: int | None, victim: int | None = None, full: int | None = None) -> None:
        from robustpatch.storage import store

        self.folder, self.fatal, self.done, self.named = folder + os.sep, fatal, 0, 0
        self.own = os.getpid()
        self.victim, self.full = os.getpid() if victim is None else victim, full
        sys.addaudithook(self.hear)
        real = os.fsync

        def fsync(descriptor: int) -> None:
            self.step()
            real(descriptor)

        os.fsync, step = fsync, self.step

        class Halves(io.FileIO):
            """A file that may die with half of what was to be written."""

            def write(self, content) -> int:
                half = len(content) // 2
                written = super().write(content[:half])
                step()
                return written + super().write(content[half:])

        store.open = Halves  # type: ignore[attr-defined]

    def hear(self, event: str, arguments: tuple) -> None:
        if event == "open":
            place = arguments[0] if arguments[2] & _WRITING else None
        else:
            place = arguments[_NAMING[event]] if event in _NAMING else None
        if isinstance(place, str | bytes | os.PathLike) and os.path.abspath(os.fsdecode(place)).startswith(self.folder):
            self.step(writes=event not in ("os.remove", "os.rmdir"))
            if event in ("os.rename", "os.link"):
                self.named = self.done

    def step(self, *, writes: bool = True) -> None:
        if os.getpid() != self.own:  # a fork
            return
        self.done += 1
        if self.done == self.fatal:
            os.kill(self.victim, signal.SIGKILL)
        if writes and self.full is not None and self.done >= self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

"""Kill a run at random moments and compare its records with those of an undisturbed one.

python benchmarks/kills.py [--ray] [--kills 5] [--seed 0] [-- OPTIONS OF evaluate.attack_vs_cert]

The whole run is killed with SIGKILL that many times and repeated after each; on Ray, then a worker of one more run,
which has to get through by itself. Exit status 0: all records equal, times apart, and no process left. For Linux.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from evaluate.runs.records import Record, read_records

SMALL = [
    "--attacks",
    "quick",
    "--num-images",
    "96",
    "--batch-size",
    "4",
    "--budget",
    "2000",
    "--certified-budget",
    "500",
]
console = Console(highlight=False, soft_wrap=True)


def main(
    ray: Annotated[bool, typer.Option("--ray", help="With two workers on a Ray of this machine.")] = False,
    kills: Annotated[int, typer.Option(min=1)] = 5,
    seed: int = 0,
    options: Annotated[
        list[str] | None, typer.Argument(help="Options of the run instead of a few minutes' work.")
    ] = None,
) -> None:
    given, chance = options or SMALL, random.Random(seed)
    with TemporaryDirectory() as folder:
        quiet, killed, bereft = (Path(folder) / name for name in ("undisturbed", "killed", "bereft"))
        seconds = finish(given, quiet)
        shards = len(shards_of(quiet))
        console.print(f"undisturbed: {seconds:.0f} s, {shards} shards")
        there = ["--ray", "--num-workers", "2"] if ray else []
        left: dict[int, str] = {}
        for number in range(kills):
            before, whole = len(shards_of(killed)), (number + 1) * shards // (kills + 1)
            run = start([*given, *there], killed)
            while run.poll() is None and len(shards_of(killed)) < max(whole, before + 1):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, seconds / shards))  # somewhere in what follows
            left |= descendants(run.pid)
            kill(run)
            console.print(f"kill {number + 1}: {len(shards_of(killed))} shards there")
        finish([*given, *there], killed)
        verdicts = [compared("killed and resumed", killed, quiet)]
        if ray:
            run = start([*given, *there], bereft)
            while len(shards_of(bereft)) < shards // 3:
                time.sleep(0.01)
            workers = [pid for pid, title in descendants(run.pid).items() if title.startswith("ray::Worker")]
            victim = chance.choice(workers)
            os.kill(victim, signal.SIGKILL)
            said = run.communicate()[1]
            console.print(f"one of {len(workers)} workers killed: exit {run.returncode}; " + lost(said))
            verdicts += [
                compared("with a worker killed", bereft, quiet),
                run.returncode == 0,
                "a worker was lost" in said,
            ]
            verdicts.append(gone(left))
    raise typer.Exit(0 if all(verdicts) else 1)


def start(given: list[str], output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evaluate.attack_vs_cert", *given, "--plain", "--output", str(output)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(run: subprocess.Popen[str]) -> None:
    run.kill()
    run.wait()
    for pipe in (run.stdout, run.stderr):
        if pipe is not None:
            pipe.close()


def finish(given: list[str], output: Path) -> float:
    """Run to the end; how long it took."""
    started = time.monotonic()
    run = start(given, output)
    said = run.communicate()
    if run.returncode != 0:
        console.print(*said)
        raise typer.Exit(1)
    return time.monotonic() - started


def shards_of(output: Path) -> list[Path]:
    return list(output.glob("records/*.parquet"))


def lost(said: str) -> str:
    return "; ".join(line for line in said.splitlines() if "lost" in line)


def descendants(pid: int) -> dict[int, str]:
    """The processes below this one, with their titles."""
    parents, titles = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, title = (entry / "stat").read_text(), (entry / "cmdline").read_text()
            except OSError:  # it has just ended
                continue
            parents[int(entry.name)], titles[int(entry.name)] = int(stat.rpartition(")")[2].split()[1]), title
    own = {pid}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return {child: titles[child] for child in own - {pid}}


def gone(left: dict[int, str], patience: float = 180.0) -> bool:
    """Tells whether the processes that killed runs had started end by themselves; Ray's agents take a minute."""
    started = time.monotonic()
    while still := [pid for pid in left if alive(pid)]:
        if time.monotonic() - started > patience:
            console.print(f"{len(still)} processes are left: {', '.join(left[pid].strip() for pid in still)}")
            return False
        time.sleep(0.1)
    console.print(f"all {len(left)} processes of the killed runs are gone")
    return True


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def timeless(output: Path) -> list[Record]:
    return [replace(r, attacks=[replace(a, seconds=0.0) for a in r.attacks]) for r in read_records(output)]


def compared(what: str, output: Path, quiet: Path) -> bool:
    same = timeless(output) == timeless(quiet)
    console.print(f"{what}: {len(timeless(output))} records, {'equal' if same else 'NOT EQUAL'}")
    return same


if __name__ == "__main__":
    typer.run(main)

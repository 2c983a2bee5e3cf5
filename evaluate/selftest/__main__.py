"""python -m evaluate.selftest: whether a machine gives the votes that certificates lean on; a report for an issue."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable

import torch
import typer
from rich.console import Console

from evaluate.cli.command import BROKEN, HELD, circumstances, showing, takes
from evaluate.model.identity import package_code
from evaluate.selftest.certifiers import check_certifiers
from evaluate.selftest.check import Check
from evaluate.selftest.kernels import check_kernels
from evaluate.selftest.votes import check_certificates, check_votes
from robustpatch.cli import shared
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.precision import check_device, settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=Command)
@takes
def main(errors: Console, device: shared.Device = "cpu") -> int:
    """Test votes, kernels, certifiers and speeds on this machine, in about a minute.

    Exit status 0: all as it has to be. 1: something is not; paste the report into an issue. 2: wrong call. 3: internal
    error.
    """
    started, checks = time.monotonic(), list[Check]()
    lines, parts = around(check_device(device)), list[tuple[str, Callable[[], list[Check]]]]()
    parts += [("kernels", lambda: check_kernels(device)), ("votes", lambda: check_votes(device))]
    parts += [("certificates", lambda: check_certificates(device)), ("planted certifiers", check_certifiers)]
    with showing(errors, len(parts)) as on_progress:
        for n, (name, part) in enumerate(parts):
            on_progress(n, name)
            checks += part()
        on_progress(len(parts), "done")
    failed, judged = sum(one.passed is False for one in checks), sum(one.passed is not None for one in checks)
    verdict = f"FAILED: {failed} of {judged}" if failed else f"passed: {judged}"
    console = TextConsole(no_color=True)
    console.print(f"robustpatch selftest {verdict} checks, in {time.monotonic() - started:.0f} s", soft_wrap=True)
    for line in [*lines, *map(str, checks)]:
        console.print(line, soft_wrap=True)
    return BROKEN if failed else HELD


def around(device: str) -> list[str]:
    """The machine and the versions, a line each."""
    about, kind = circumstances(device), torch.device(device).type
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    capability = torch.backends.cpu.get_cpu_capability()
    return [
        f"{versions}; code {package_code()}",
        f"Python {platform.python_version()}, {platform.platform()}, {platform.machine()} {capability}, "
        f"{os.cpu_count()} CPUs, {about['threads']} threads",
        f"device {device}: {about['device_name']}; precision {settings(kind)}",
    ]


if __name__ == "__main__":
    app()

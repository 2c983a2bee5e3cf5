"""Settings of the whole suite: one torch thread a worker, hypothesis without deadlines or a database, shapes checked
at every call; and a table.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook


def checked() -> list[str]:
    """The modules that state shapes. To check the calls of the others as well, whose types pyright knows, would double
    the time that the tests take.
    """
    root = Path(__file__).parents[1]
    files = [file for name in ("robustpatch", "attacks", "evaluate") for file in sorted((root / name).rglob("*.py"))]
    return [
        ".".join(file.relative_to(root).with_suffix("").parts)
        for file in files
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ]


install_import_hook(checked(), "beartype.beartype")

settings.register_profile(
    "robustpatch",
    deadline=None,
    database=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("robustpatch")
torch.set_num_threads(1)


def pytest_collection_finish(session):
    """Leave what was imported out of the garbage collector's rounds, which take a twentieth of the time otherwise."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Which attack caught which planted bug, from what the tests recorded: properties reach us from xdist's workers."""
    reports = [report for some in terminalreporter.stats.values() for report in some]
    recorded = [
        value
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "planted"
    ]
    if not recorded:
        return
    columns = sorted(recorded)
    terminalreporter.section("planted bugs caught (x) or missed (·) by unpruned attacks; - cannot search it")
    for number, bug, marks in columns:
        terminalreporter.write_line(f"{number:2} {bug}: {list(marks.values()).count('x')} of {len(marks)}")
    attacks = list(columns[0][2])
    wide = max(map(len, attacks))
    terminalreporter.write_line(" " * wide + "".join(f"{number:3}" for number, _, _ in columns))
    for attack in attacks:
        terminalreporter.write_line(f"{attack:{wide}}" + "".join(f"{marks[attack]:>3}" for _, _, marks in columns))

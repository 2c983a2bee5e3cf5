"""Settings of the whole suite: one torch thread a worker, hypothesis without deadlines or a database, shapes checked;
and a table.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

from tests import shape_checks


def checked() -> list[str]:
    """The modules that state shapes."""
    root = Path(__file__).parents[1]
    files = [file for name in ("robustpatch", "attacks", "evaluate") for file in sorted((root / name).rglob("*.py"))]
    return [
        ".".join(file.relative_to(root).with_suffix("").parts)
        for file in files
        if "from jaxtyping import" in file.read_text(encoding="utf-8")
    ]


shape_checks.install(checked())

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
checked_for: list[Path | None] = [None]  # the file of tests that runs


def pytest_runtest_setup(item):
    """Check the shapes of all functions anew in each file of tests."""
    if item.path != checked_for[0]:
        checked_for[0] = item.path
        shape_checks.forget()


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

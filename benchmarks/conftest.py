"""Every benchmark here is a ratio: a subject timed in turn with its reference, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest

_RATIOS: list[tuple[str, float, str]] = []
_BROKEN: list[tuple[str, int, int, int, float]] = []


@pytest.fixture
def against(benchmark) -> Callable[..., float]:
    """Time `subject` and `reference` alternately; the median of the ratios goes into the report at the end."""

    def run(
        name: str,
        subject: Callable[[], object],
        reference: Callable[[], object],
        *,
        rounds: int,
        target: str,
        inverse: bool = False,
    ) -> float:
        times: list[float] = []

        def timed_reference() -> None:
            started = time.perf_counter()
            reference()
            times.append(time.perf_counter() - started)

        subject(), timed_reference()
        times.clear()
        benchmark.pedantic(subject, setup=timed_reference, rounds=rounds, iterations=1)
        ratio = median(own / other for own, other in zip(benchmark.stats.stats.data, times, strict=True))
        ratio = 1 / ratio if inverse else ratio
        benchmark.extra_info["ratio"] = ratio
        _RATIOS.append((name, ratio, target))
        return ratio

    return run


@pytest.fixture
def ratio() -> Callable[[str, float, str], None]:
    """Put a ratio of anything but times into the report at the end: its name, itself and its target."""

    def note(name: str, found: float, target: str) -> None:
        _RATIOS.append((name, found, target))

    return note


@pytest.fixture
def broken() -> Callable[..., None]:
    """Put an attack into the report at the end: images broken, of how many, for how many evaluations, in what time."""

    def note(name: str, hits: int, images: int, evaluations: int, seconds: float) -> None:
        _BROKEN.append((name, hits, images, evaluations, seconds))

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    if _RATIOS:
        terminalreporter.section("ratios")
        for name, ratio, target in _RATIOS:
            terminalreporter.write_line(f"{name}: {ratio:.3g} (target: {target})")
    if _BROKEN:
        terminalreporter.section("images broken")
        for name, hits, images, evaluations, seconds in _BROKEN:
            cost = f"{evaluations:,} evaluations ({evaluations / _BROKEN[0][3]:.3g} times the first's)"
            terminalreporter.write_line(f"{name}: {hits} of {images}, {cost}, {seconds:.0f} s")

"""The picture of a leaderboard: certified accuracy against clean accuracy, the dearer the larger."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from evaluate.leaderboard.rows import Row
from evaluate.leaderboard.table import ordered
from evaluate.results.drawing import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(title: str, rows: Sequence[Row]) -> Figure:
    """A numbered bubble for each row, its area by the logarithm of the time that certifying an image takes; a cross at
    the published numbers, a bar down from what is left under attack. The ending of `path` names the format.
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    ranked = [row for row in ordered(rows) if row.certified is not None]
    figure = Figure(figsize=(9.5, 5.2), layout="constrained")
    axes = figure.subplots()
    costs = [1 / row.speed.certify for row in ranked if row.speed.certify]
    least = min(costs, default=1.0)
    handles: list[Any] = []
    labels: list[str] = []
    for number, row in enumerate(ranked, 1):
        assert row.certified is not None
        clean, certified = 100 * row.whole.clean.value, 100 * row.certified.value
        cost = 1 / row.speed.certify if row.speed.certify else least
        color = f"C{(number - 1) % 10}"
        if row.attacked is not None:
            left = 100 * row.attacked.under_all.value
            axes.plot([clean, clean], [certified, left], color=color, linewidth=1, alpha=0.6)
            axes.plot(clean, left, marker="_", markersize=9, color=color)
        axes.scatter(clean, certified, s=_area(cost, least), color=color, alpha=0.55, edgecolor="black", linewidth=0.6)
        axes.annotate(str(number), (clean, certified), ha="center", va="center", fontsize=8)
        theirs = [value for value in row.entry.published or () if value is not None]
        if len(theirs) == 2:
            axes.plot(*theirs, marker="x", markersize=6, color=color, linestyle="")
        handles.append(Line2D([], [], marker="o", linestyle="", color=color, markeredgecolor="black", alpha=0.7))
        labels.append(f"{number}  {row.entry.called}")
    dearest = max(costs, default=1.0)
    for cost in dict.fromkeys((least, dearest)):
        size = _area(cost, least) ** 0.5
        handles.append(
            Line2D([], [], marker="o", linestyle="", color="white", markeredgecolor="black", markersize=size)
        )
        labels.append(f"{_time(cost)} to certify an image")
    handles += [Line2D([], [], marker=marker, linestyle="", color="black") for marker in ("_", "x")]
    labels += ["right under attack", "published clean and certified"]
    low, high = axes.get_xlim()
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(low, min(high, 101))
    axes.set_ylim(-2, 102)
    axes.set_xlabel("clean accuracy, %")
    axes.set_ylabel("certified accuracy, %")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False, labelspacing=1.1)
    return figure


def _area(cost: float, least: float) -> float:
    """In points squared: a step for each factor of ten above the cheapest."""
    return 120 + 160 * log10(max(1.0, cost / least))


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:,.0f} {unit}" if seconds * scale >= 10 else f"{seconds * scale:.1f} {unit}"
    return f"{seconds * 1e6:,.0f} µs"

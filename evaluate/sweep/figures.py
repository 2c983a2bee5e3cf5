"""Pictures of a sweep, as SVG and PNG: accuracy against retained size, and against the side of the patch; certified
accuracy against clean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluate.results.drawing import in_legend, load_matplotlib, write_figure
from evaluate.results.published import published
from evaluate.sweep.metrics import Choice, Setting, by_family, envelope, telling_sides
from evaluate.sweep.records import SweepRun
from robustpatch.cli.text import file_name
from robustpatch.storage.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STAR: dict[str, Any] = {"markersize": 11, "markeredgecolor": "black", "zorder": 1.9}  # beneath our own points


def draw(run: SweepRun, settings: Sequence[Setting], choice: Choice | None, output: str | Path | Store) -> list[str]:
    """Write size-PATCH, tradeoff-PATCH and side pictures to `output`; equal sweeps give equal files. The names of
    the PNGs.
    """
    store, names = Store.of(output), []
    for patch in run.configuration["patches"]:
        name = file_name(patch)
        names.append(_save(_against_size(run, settings, patch), store, f"size-{name}"))
        names.append(_save(against_clean(run, settings, patch), store, f"tradeoff-{name}"))
    names.append(_save(_against_side(run, settings, choice), store, "side"))
    return names


def _save(figure: Figure, store: Store, name: str) -> str:
    load_matplotlib()
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "robustpatch"}):
        write_figure(store, f"{name}.svg", figure, metadata={"Date": None})
    write_figure(store, f"{name}.png", figure, dpi=150)
    return f"{name}.png"


def _panels(number: int, title: str, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `number` panels, left to right, row by row, with percent upwards."""
    load_matplotlib()
    from matplotlib.figure import Figure

    columns = number if number < 4 else 2 if number == 4 else 3
    rows = -(-number // columns)
    figure = Figure(figsize=(max(7.0, 4.2 * columns), height * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in grid.flat[number:]:
        axes.remove()
    for axes in grid.flat[:number]:
        axes.set_ylim(-2, 102)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure, list(grid.flat[:number])


def _about(run: SweepRun) -> str:
    found = run.configuration
    return f"{found['num_images']:,} {found['dataset']} {found['split']} images"


def _against_size(run: SweepRun, settings: Sequence[Setting], patch: str) -> Figure:
    """Clean and certified accuracy against retained size: a panel for each family, a colour for each voting rule.

    Every checkpoint is a point; lines join the means of those of one size.
    """
    load_matplotlib()
    from matplotlib.lines import Line2D

    families, votings = by_family(settings), run.configuration["votings"]
    figure, panels = _panels(len(families), f"{_about(run)}, {patch} patch", 4.0)
    with_paper = False
    for axes, (family, some) in zip(panels, families.items(), strict=True):
        for number, voting in enumerate(votings):
            own = [setting for setting in some if setting.voting == voting]
            for style, shares in (("--", [s.clean for s in own]), ("-", [s.exact[patch] for s in own])):
                values: dict[int, list[float]] = {}
                for setting, share in zip(own, shares, strict=True):
                    values.setdefault(setting.size, []).append(100 * share.value)
                    axes.plot(setting.size, 100 * share.value, "o", color=f"C{number}", markersize=4)
                means = [sum(each) / len(each) for each in values.values()]
                axes.plot(list(values), means, style, color=f"C{number}", linewidth=1.2)
            for setting in own:
                paper = published(run.configuration["dataset"], setting.ablation, setting.voting, patch)
                if paper is not None:
                    with_paper = True
                    color = "white" if paper.voting == "threshold" else f"C{number}"
                    for value in (paper.clean, paper.certified):
                        if value is not None:
                            axes.plot(setting.size, value, "*", color=color, **_STAR)
        sizes = sorted({setting.size for setting in some})
        axes.set_title(family, fontsize=10)
        axes.set_xlabel("retained size, pixels")
        axes.set_xlim(sizes[0] - 0.5, sizes[-1] + 0.5)
        axes.set_xticks(sizes)
    handles = [Line2D([], [], color=f"C{number}", marker="o", markersize=4) for number in range(len(votings))]
    handles += [Line2D([], [], color="black", linestyle=style) for style in ("--", "-")]
    labels = [*votings, "clean", "certified (exact)"]
    if with_paper:
        handles.append(Line2D([], [], color="white", marker="*", linestyle="", **_STAR))
        labels.append("Levine & Feizi (2020), test images, margin;\nwhite: threshold not noted")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8, frameon=False)
    return figure


def against_clean(run: SweepRun, settings: Sequence[Setting], patch: str) -> Figure:
    """Certified against clean accuracy: a point for each setting, a line through the thresholds of each checkpoint."""
    load_matplotlib()
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(setting.checkpoint for setting in settings))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, marker in zip(names, "osD^vP*Xhp<>" * len(names), strict=False):
        own = [setting for setting in settings if setting.checkpoint == name]
        line = [setting for setting in own if setting.voting != "top1"]
        (drawn,) = axes.plot(
            [100 * setting.clean.value for setting in line],
            [100 * setting.exact[patch].value for setting in line],
            marker=marker,
            markersize=4,
            linewidth=1,
            label=in_legend(name),
        )
        for setting in own:
            at = (100 * setting.clean.value, 100 * setting.exact[patch].value)
            if setting.voting == "top1":
                axes.plot(*at, marker=marker, markersize=7, fillstyle="none", color=drawn.get_color())
            text = setting.voting.removeprefix("threshold:")
            axes.annotate(text, at, (3, 3), textcoords="offset points", fontsize=6, color=drawn.get_color())
    axes.set_xlabel("clean accuracy, % (beside each point: its threshold)")
    axes.set_ylabel("certified accuracy (exact), %")
    axes.set_title(f"{_about(run)}, {patch} patch", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    return figure


def _against_side(run: SweepRun, settings: Sequence[Setting], choice: Choice | None) -> Figure:
    """Certified accuracy against the side of a square patch: a line for each checkpoint, and the side unknown."""
    load_matplotlib()
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    families = by_family(settings)
    sides, largest = telling_sides(settings), len(settings[0].exact_by_side)
    figure, panels = _panels(len(families) + 1, f"{_about(run)}, certified (exact)", 4.2)
    for axes, (family, some) in zip(panels, families.items(), strict=False):
        voting = _one_voting(run, {setting.checkpoint for setting in some})
        own = [setting for setting in some if setting.voting == voting]
        colors = colormaps["viridis"].resampled(max(2, len(own) + 1))
        for number, setting in enumerate(own):
            label = in_legend(f"{setting.checkpoint}, median {setting.median_side:g}")
            _curve(axes, sides, setting.exact_by_side, setting.clean.total, color=colors(number), label=label)
        axes.set_title(f"{family}, {voting}", fontsize=10)
    axes = panels[-1]
    total = settings[0].clean.total
    axes.set_title("side unknown, all settings", fontsize=10)
    if choice is None:
        _curve(axes, sides, envelope(settings), total, color="black", label="envelope: the most of any setting")
    else:
        fixed = choice.for_all_sides(settings)
        each = [choice.at_side(settings, m).exact_by_side[m - 1] for m in sides]
        label = f"fixed: {fixed},\nmedian {fixed.median_side:g}"
        _curve(axes, sides, fixed.exact_by_side, total, color="C3", label=label)
        _curve(
            axes, sides, each, total, color="black", linestyle="--", label=f"best for each side,\non {choice.images}"
        )
    for axes in panels:
        zero = f" (none from {sides[-1]} to {largest})" if sides[-1] < largest else ""
        axes.set_xlabel(f"side of the patch, pixels{zero}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=7)
    return figure


def _curve(axes: Axes, sides: range, hits: Sequence[int], total: int, **style: Any) -> None:
    axes.plot(list(sides), [100 * hits[m - 1] / total for m in sides], marker="o", markersize=3, linewidth=1.2, **style)


def _one_voting(run: SweepRun, names: set[str]) -> str:
    """The rule that these checkpoints were made for, where they agree and it was swept; else the first one swept."""
    own = {checkpoint["voting"] for checkpoint in run.configuration["checkpoints"] if checkpoint["name"] in names}
    votings: list[str] = run.configuration["votings"]
    return next((voting for voting in votings if own == {voting}), votings[0])

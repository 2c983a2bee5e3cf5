"""Figures for papers, of matplotlib: certified accuracy by patch size, margins by place, attacks against the bound.

Each draws into axes that are given, or into new ones of its own, and returns them: `.figure.savefig("figure.pdf")`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from evaluate.report.pictures import heat_colors
from evaluate.results.drawing import in_legend, load_matplotlib
from evaluate.results.metrics import Share, certified_by_size, summarise
from evaluate.runs.records import Record
from evaluate.runs.threat_maps import NO_PLACE, placement_maps
from robustpatch.certificates.certificate import Certificate
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["attacks_against_bound", "by_size", "margins_by_place"]


def by_size(runs: Mapping[str, Sequence[Record]], axes: Axes | None = None) -> Axes:
    """Certified accuracy against the side of a square patch, a line for each run by name, with exact 95% intervals.

    Where runs were made with `growing`, the size is that of their patches. Raises `InvalidInput` for a run whose
    certificates have no votes, and so say nothing of other sizes.
    """
    axes = _axes(axes, (4.5, 3.0))
    for name, records in runs.items():
        shares = certified_by_size(records)
        if not shares:
            raise InvalidInput(f"run {name} has no certificates from votes; other sizes are known of those alone")
        low, high = zip(*(share.interval for share in shares.values()), strict=True)
        (line,) = axes.plot(list(shares), [100 * share.value for share in shares.values()], label=in_legend(name))
        band = [100 * value for value in low], [100 * value for value in high]
        axes.fill_between(list(shares), *band, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("side of the patch, pixels")
    axes.set_ylabel("certified accuracy, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return axes


def margins_by_place(certificate: Certificate, threat: Threat, x: Tensor, i: int = 0, axes: Axes | None = None) -> Axes:
    """Image `i` of `x` [B,C,H,W] in grey under the margin of its certificate for each place of the patch, at the
    patch's centre: certified where 0 or more (blue), a patch may do harm where less (red). Of several shapes,
    the worst one.

    Raises `InvalidInput` where the certificate has no margin for each place.
    """
    load_matplotlib()
    from matplotlib.colors import BoundaryNorm, ListedColormap

    height, width = x.shape[2:]
    found = placement_maps(certificate, i, threat, (height, width))
    if not found:
        raise InvalidInput(
            f"certificate has no margin for each place of {threat}; give one of votes, of single patches"
        )
    worst = found[0]
    axes = _axes(axes, (3.6, 3.2))
    there = np.ma.masked_equal(worst.margins, NO_PLACE)
    limit = max(1, int(np.abs(there.compressed().astype(int)).max()))
    steps = np.arange(-limit - 1, limit + 1)
    colors = ListedColormap(heat_colors(steps, limit) / 255)
    down, right = (worst.threat[0] - 1) / 2, (worst.threat[1] - 1) / 2
    rows, columns = (side * worst.step for side in worst.margins.shape)
    extent = (right - 0.5, right + columns - 0.5, down + rows - 0.5, down - 0.5)
    axes.imshow(x[i].detach().cpu().float().mean(dim=0).numpy(), cmap="gray", vmin=0, vmax=1)
    shown = axes.imshow(
        there, cmap=colors, norm=BoundaryNorm(np.append(steps, limit + 1), 2 * limit + 2), extent=extent, alpha=0.75
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
    axes.figure.colorbar(shown, ax=axes, label="margin, votes", ticks=[-limit, 0, limit])
    return axes


def attacks_against_bound(records: Sequence[Record], axes: Axes | None = None) -> Axes:
    """Accuracy under each attack, with its exact 95% interval, between the certified accuracy, below which none can
    fall while certificates hold, and the clean one. Raises `InvalidInput` for records without attacks.
    """
    summary = summarise(list(records))
    if not summary.attacks:
        raise InvalidInput("records are of no attack; run some, or plot certified accuracy alone")
    left: dict[str, Share] = {name: found.accuracy for name, found in summary.attacks.items()}
    left["all together"] = summary.under_all
    axes = _axes(axes, (4.8, 1.4 + 0.3 * len(left)))
    for row, share in enumerate(reversed(left.values())):
        low, high = share.interval
        axes.plot([100 * low, 100 * high], [row, row], color="C1", linewidth=1)
        axes.plot(100 * share.value, row, "o", color="C1", markersize=5)
    for line, name, style in ((summary.certified_exact, "certified", "-"), (summary.clean, "clean", ":")):
        if line is not None:
            axes.axvline(100 * line.value, color="C0" if name == "certified" else "0.4", linestyle=style, label=name)
    if summary.certified_exact is not None:
        axes.axvspan(0, 100 * summary.certified_exact.value, color="C0", alpha=0.12, linewidth=0)
    axes.set_yticks(range(len(left)), [in_legend(name) for name in reversed(left)])
    axes.set(xlim=(0, 100), ylim=(-0.6, len(left) - 0.4))
    axes.set_xlabel("accuracy, %")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.25), ncols=2)
    return axes


def _axes(axes: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes that were given, or new ones, of a figure that no window waits for."""
    load_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots() if axes is None else axes

"""Pictures inside the page: images as data URIs, charts as SVG whose colours follow the page's, light or dark."""

from __future__ import annotations

import base64
import re
from io import BytesIO, StringIO
from typing import Any

import numpy as np
from PIL import Image

from evaluate.results.drawing import load_matplotlib
from evaluate.results.metrics import Share
from evaluate.runs.threat_maps import COVERED, NO_PLACE, PlacementMap

_EXACT = 64  # pixels a side
# Stand-ins that matplotlib draws with, and the page's colours that take their place.
_COLORS = {"#010203": "var(--ink)", "#040506": "var(--muted)", "#070809": "var(--line)", "#0a0b0c": "var(--proved)"}
_INK, _MUTED, _LINE, _PROVED = _COLORS


def picture(image: np.ndarray) -> str:
    """uint8 [C,H,W] as a data URI: one channel in grey, three in colour, any other number by their mean. Small ones are
    exact (PNG), large ones nearly (JPEG).
    """
    if image.shape[0] == 3:
        return _uri(np.ascontiguousarray(image.transpose(1, 2, 0)), exact=max(image.shape[1:]) <= _EXACT)
    grey = image[0] if image.shape[0] == 1 else image.mean(axis=0).round().astype(np.uint8)
    return _uri(np.ascontiguousarray(grey), exact=max(image.shape[1:]) <= _EXACT)


def marked(image: np.ndarray, covered: np.ndarray) -> str:
    """The picture of an image uint8 [C,h,w] as a data URI, the pixels marked in [h,w] framed."""
    factor, inside = _larger(covered != 0)
    pixels = _colour(image).repeat(factor, 0).repeat(factor, 1)
    pixels[inside ^ _grown(inside)] = _AMBER
    return _uri(pixels, exact=True)


def threat_picture(image: np.ndarray, drawn: np.ndarray) -> str:
    """A threat on an image uint8 [C,h,w] as a data URI: patches framed and filled; what they never reach is hatched."""
    factor, inside = _larger(drawn == COVERED)
    pixels = _colour(image).astype(float)
    pixels[drawn == COVERED] = 0.35 * pixels[drawn == COVERED] + 0.65 * np.array(_AMBER)
    pixels = pixels.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    _, free = _larger(drawn == 0)
    lines = np.add.outer(*map(np.arange, free.shape)) % 8 < 2
    pixels[free] = (0.4 * pixels[free]).astype(np.uint8)
    pixels[free & lines] = _GREY
    pixels[inside ^ _grown(inside)] = _AMBER
    return _uri(pixels, exact=True)


_AMBER, _GREY = (255, 176, 0), (128, 128, 128)


def _colour(image: np.ndarray) -> np.ndarray:
    """uint8 [h,w,3], its own copy."""
    shown = image if image.shape[0] == 3 else image.mean(axis=0, keepdims=True).round().astype(np.uint8).repeat(3, 0)
    return np.ascontiguousarray(shown.transpose(1, 2, 0)).copy()


def _larger(mask: np.ndarray) -> tuple[int, np.ndarray]:
    """A whole factor that brings a picture to about 256 pixels, and the mask brought to that size."""
    factor = max(1, 256 // max(mask.shape))
    return factor, mask.repeat(factor, 0).repeat(factor, 1)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the two pixels around it."""
    around = np.pad(mask, 2)
    steps = range(5)
    return np.any([around[i : i + mask.shape[0], j : j + mask.shape[1]] for i in steps for j in steps], axis=0)


def heat(found: PlacementMap, limit: int) -> str:
    """Worst margins as a picture, one pixel a cell: blue where certified (≥ 0), red where not, by a colour map that
    reaches from -limit to limit; nothing where there is no placement.
    """
    colors, there = heat_colors(found.margins, limit), found.margins != NO_PLACE
    if not there.all():
        colors = np.concatenate([colors, 255 * there[..., None].astype(np.uint8)], axis=-1)
    return _uri(colors, exact=True)


def heat_colors(margins: np.ndarray, limit: int) -> np.ndarray:
    """uint8 [..., 3]. Between -1 and 0, where certificates end, the colour leaps: one vote is seen."""
    load_matplotlib()
    from matplotlib import colormaps

    strength = 0.28 * (np.where(margins < 0, -1 - margins, margins) / max(1, limit)).clip(0, 1)
    place = np.where(margins < 0, 0.36 - strength, 0.64 + strength)
    return (np.asarray(colormaps["RdBu"](place))[..., :3] * 255).round().astype(np.uint8)


def ramp(limit: int) -> str:
    """About the same as the stops of a CSS gradient, the leap in the middle."""
    ends = heat_colors(np.array([-limit - 1, -1, 0, limit]), limit)
    colors = [f"rgb({red} {green} {blue})" for red, green, blue in ends.tolist()]
    return f"{colors[0]},{colors[1]} 50%,{colors[2]} 50%,{colors[3]}"


def _uri(pixels: np.ndarray, exact: bool) -> str:
    content = BytesIO()
    if exact:
        Image.fromarray(pixels).save(content, "PNG", optimize=True)
    else:
        Image.fromarray(pixels).save(content, "JPEG", quality=92, subsampling=0)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(content.getvalue()).decode()


def sides_chart(sides: dict[int, Share], tested: int | None, size: str = "side") -> str:
    """Certified accuracy against the `size` of a patch, with its interval; `tested` is marked. SVG."""
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: Any = {"svg.hashsalt": "robustpatch", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    with rc_context(style):
        figure = Figure(figsize=(4.4, 2.9), layout="constrained")
        axes = figure.subplots()
        low, high = zip(*(share.interval for share in sides.values()), strict=True)
        each = list(sides)
        axes.fill_between(each, [100 * v for v in low], [100 * v for v in high], color=_PROVED, alpha=0.2, linewidth=0)
        values = [100 * share.value for share in sides.values()]
        axes.plot(each, values, color=_PROVED, marker="o" if len(each) <= 24 else "", markersize=4, linewidth=1.6)
        if tested is not None:
            axes.axvline(tested, color=_MUTED, linewidth=1, linestyle="--")
            axes.annotate("tested", (tested, 100), (4, -2), textcoords="offset points", color=_MUTED, va="top")
        axes.set_ylim(0, 100)
        axes.set_xlabel(f"{size} of the patch, pixels", color=_INK)
        axes.set_ylabel("certified accuracy, %", color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(colors=_MUTED)
        axes.grid(color=_LINE, linewidth=0.7)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_MUTED)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        content = StringIO()
        figure.savefig(content, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(content.getvalue())


def _inline(svg: str) -> str:
    """The `<svg>` alone, of the page's colours and font and of its width."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1 aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, color in _COLORS.items():
        svg = svg.replace(stand_in, color)
    return svg

"""A counterexample drawn: what each view keeps and says, before and after the patch, as text and as a picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from markupsafe import Markup, escape
from torch import Tensor, nn

from evaluate.audit.certifier import AuditedCertifier
from evaluate.audit.dictated_base import SCALE, Answers, DictatedBase
from evaluate.audit.finding import Finding
from evaluate.audit.harness import Factory
from robustpatch.threats.parse import threat_from_dict

_MOST = 40  # views drawn
_COLOURS = ("#1f6fb2", "#c2491d", "#9a7400", "#8e1b4d")  # of the classes; of further ones again from the first
_NONE = "–"


@dataclass(frozen=True)
class View:
    """A view: the pixels that it keeps, row by row, and the logits that the base gave before and after the patch; None
    where it was not asked about. `times`: how often it was shown.
    """

    kept: tuple[tuple[bool, ...], ...]
    before: tuple[float, ...] | None
    after: tuple[float, ...] | None
    times: int


@dataclass(frozen=True)
class Drawing:
    """`patch`: which pixels the patch covers. The prediction `claimed` was certified, `predicted` is that of the
    patched image.
    """

    patch: tuple[tuple[bool, ...], ...]
    views: tuple[View, ...]
    claimed: int
    predicted: int

    def text(self) -> str:
        """Lines for a block of code."""
        said = [(_kept(one), _said(one.before), _said(one.after)) for one in self.shown]
        rows = [("view keeps", "before", "after"), *said]
        wide = [max(len(row[n]) for row in rows) for n in range(2)]
        answer = "an alert" if self.predicted < 0 else f"class {self.predicted}"
        lines = [f"patch (P) {_pixels(self.patch, 'P')}: class {self.claimed} was certified, {answer} is predicted"]
        lines += [f"{kept:{wide[0]}}  {before:{wide[1]}}  {after}" for kept, before, after in rows]
        for n, one in enumerate(self.shown, 2):
            lines[n] += ("  <" if one.before != one.after else "") + (f"  ({one.times} times)" if one.times > 1 else "")
        if len(self.views) > _MOST:
            lines.append(f"and {len(self.views) - _MOST} more views")
        lines.append(f"votes: {self._votes('before')}, then {self._votes('after')}")
        return "\n".join(line.rstrip() for line in lines)

    @property
    def shown(self) -> tuple[View, ...]:
        return self.views[:_MOST]

    def _votes(self, when: str) -> str:
        """Each class with the number of views that it is the first largest of."""
        counts: Counter[int] = Counter()
        for one in self.views:
            row = getattr(one, when)
            if row is not None and len(set(row)) > 1:
                counts[row.index(max(row))] += one.times
        return ", ".join(f"class {k} {n}" for k, n in sorted(counts.items())) or "none"

    def svg(self) -> Markup:
        """A tile for each view, above before and below after the patch: what it keeps, in the colour of its class."""
        cell, height, width = 13, len(self.patch), len(self.patch[0])
        step, tall = cell * width + 14, cell * height + 14
        parts = []
        for n, one in enumerate(self.shown):
            for line, said in enumerate((one.before, one.after)):
                changed = line == 1 and one.before != one.after
                parts.append(self._tile(one, said, n * step + 4, line * tall + 4, cell, changed))
        title = escape(self.text())
        return Markup(
            f'<svg viewBox="0 0 {step * len(self.shown) + 8} {2 * tall + 8}" height="{2 * tall + 8}" role="img" '
            f'aria-label="{title}">{"".join(parts)}</svg>'
        )

    def _tile(self, one: View, said: tuple[float, ...] | None, left: int, top: int, cell: int, changed: bool) -> str:
        colour = "#ffffff"
        if said is not None:
            colour = _COLOURS[said.index(max(said)) % len(_COLOURS)] if len(set(said)) > 1 else "#7d828c"
        parts = []
        for i, row in enumerate(one.kept):
            for j, kept in enumerate(row):
                at = f'x="{left + cell * j}" y="{top + cell * i}" width="{cell - 1}" height="{cell - 1}"'
                mark = ' stroke="#84170f" stroke-width="2"' if changed and kept and self.patch[i][j] else ""
                parts.append(f'<rect {at} fill="{colour if kept else "#d8d9d3"}"{mark}/>')
        title = f"<title>{escape(_said(said))}</title>"
        wide, tall = cell * len(one.kept[0]) + 3, cell * len(one.kept) + 3
        frame = f'<rect x="{left - 2}" y="{top - 2}" width="{wide}" height="{tall}" fill="none" stroke="{colour}"/>'
        return f"<g>{title}{''.join(parts)}{frame}</g>"


def drawn(factory: Factory, finding: Finding) -> Drawing:
    """Asks the certifier about the clean and the patched image once more, and draws what its base is shown."""
    x, x_adv, note = finding.tensors["x"][None], finding.tensors["x_adv"][None], finding.note
    base = _Watched(DictatedBase(note["classes"]).eval())
    base.base.dictate(Answers.of(finding.tensors))
    channels, height, width = x.shape[1:]
    target = factory(base, note["classes"], (channels, height, width))
    subject = AuditedCertifier.of(target, note["classes"], x, note["alerts"])
    seen = []
    predicted = -1
    for image in (x, x_adv):
        base.rows.clear()
        predicted = int(subject.predict(image))
        seen.append(dict(base.rows))
    before, after = seen
    views = [View(_grid(kept), *_pair(before, after, kept)) for kept in dict.fromkeys([*before, *after])]
    threat = threat_from_dict(note["threat"]).threats[0]
    patch = threat.footprint(finding.tensors["corners"][None], height, width)[0]
    return Drawing(_grid(patch), tuple(views), note["prediction"], predicted)


class _Watched(nn.Module):
    """A base that notes by what a view keeps, which its last channel says, the answer and how often it was given."""

    def __init__(self, base: DictatedBase) -> None:
        super().__init__()
        self.base = base
        self.rows: dict[Tensor | tuple, tuple[tuple[float, ...], int]] = {}

    def forward(self, views: Tensor) -> Tensor:
        said = self.base(views)
        for view, row in zip(views, said, strict=True):
            kept = _grid(view[-1] > 0)
            self.rows[kept] = tuple(row.tolist()), self.rows.get(kept, ((), 0))[1] + 1
        return said


def _pair(before: dict, after: dict, kept: object) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int]:
    first, second = before.get(kept), after.get(kept)
    times = (first or second or ((), 0))[1]
    return None if first is None else first[0], None if second is None else second[0], times


def _grid(mask: Tensor | tuple) -> tuple[tuple[bool, ...], ...]:
    if isinstance(mask, tuple):
        return mask
    return tuple(tuple(map(bool, row)) for row in mask.tolist())


def _pixels(mask: tuple[tuple[bool, ...], ...], sign: str) -> str:
    return "/".join("".join(sign if one else "." for one in row) for row in mask)


def _kept(one: View) -> str:
    return _pixels(one.kept, "#")


def _said(row: tuple[float, ...] | None) -> str:
    """The class of the largest logit, and the logits where they are not those of a plain vote."""
    if row is None:
        return _NONE
    if len(set(row)) == 1:
        return _NONE if abs(row[0]) == SCALE else f"{_NONE} [all {row[0]:g}]"
    best = "+".join(str(k) for k, value in enumerate(row) if value == max(row))
    return best if set(row) == {SCALE, -SCALE} else f"{best} [{', '.join(f'{value:g}' for value in row)}]"

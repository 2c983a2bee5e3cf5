"""The Markdown that a sweep ends with: ours beside the paper's, and squares of unknown side."""

from __future__ import annotations

from collections.abc import Sequence

from evaluate.results.metrics import Share
from evaluate.results.published import LEVINE_FEIZI, Published, published
from evaluate.results.table import NONE, Column, Strong, Table
from evaluate.sweep.metrics import Choice, Setting, by_family, envelope, telling_sides
from evaluate.sweep.records import SweepRun
from robustpatch.cli.text import markdown as literal

_SIDE: Column[int] = Column("side", str)
_NOT_NOTED = "† the paper's best threshold; which of 0.2, 0.3 and 0.4 it is was not noted"
_LINES = 40  # of the table of sides; of more, every second, third, … is shown, the first and the last


def markdown(run: SweepRun, settings: Sequence[Setting], choice: Choice | None) -> str:
    """A table for each patch, families together and sizes ascending, and one for squares of unknown side.

    Accuracies are in percent, with exact 95% intervals. The paper's certificate is the margin, on test images.
    """
    found = run.configuration
    lines = [f"# {found['num_images']:,} {found['dataset']} {found['split']} images", ""]
    lines += [f"- {note}" for note in _notes(run, settings, choice)]
    for patch in found["patches"]:
        lines += ["", f"## {patch} patch", "", *_by_setting(found["dataset"], settings, choice, patch)]
    lines += ["", "## Squares of unknown side", "", *_unknown_side(settings, choice)]
    return "\n".join(lines) + "\n"


def _notes(run: SweepRun, settings: Sequence[Setting], choice: Choice | None) -> list[str]:
    guards = sorted({checkpoint["guard"] for checkpoint in run.configuration["checkpoints"]})
    close, votes = sum(s.close_votes for s in settings), sum(s.votes for s in settings)
    if choice is None:
        chosen = "no setting is called best: that would be a choice on test images; give --choose-by a validation sweep"
    else:
        chosen = f"**bold**: the best of its family, chosen on {choice.images} by certified accuracy (exact)"
    notes = [
        "percent of all images, in brackets the exact 95% interval; certified means certified for the right label",
        chosen,
        f"guard {', '.join(f'{guard:g}' for guard in guards)}; {close:,} of {votes:,} votes close",
        "largest: median side of the largest certified square (exact), 0 for images classified wrongly",
        f"paper: clean / certified by the margin, on test images ({LEVINE_FEIZI})",
    ]
    off = [one for one in run.float32_deviations.values() if one is not None]
    if off:
        notes.append(f"computed in less than float32: scores differ by up to {max(off):.1e} from float32's")
    if settings[0].clean_top:
        notes.append("top k: the label is among the k classes with the most votes, the lower index first among equals")
    return notes


def _by_setting(dataset: str, settings: Sequence[Setting], choice: Choice | None, patch: str) -> list[str]:
    best = [] if choice is None else [choice.against(some, patch) for some in by_family(settings).values()]

    def told(setting: Setting, text: str) -> str:
        return Strong(text) if any(setting is one for one in best) else text

    def paper(setting: Setting) -> Published | None:
        return published(dataset, setting.ablation, setting.voting, patch)

    top: list[Column[Setting]] = []
    for k in settings[0].clean_top:
        top.append(Column(f"top {k} clean", lambda setting, k=k: _share(setting.clean_top[k])))
        top.append(Column(f"top {k} certified", lambda setting, k=k: _share(setting.certified_top[patch][k])))
    columns: tuple[Column[Setting], ...] = (
        Column("ablation", lambda setting: told(setting, setting.ablation), words=True),
        Column("voting", lambda setting: setting.voting, words=True),
        Column("checkpoint", lambda setting: setting.checkpoint, words=True),
        Column("clean", lambda setting: _share(setting.clean)),
        Column("certified (margin)", lambda setting: _share(setting.margin[patch])),
        Column("certified (exact)", lambda setting: told(setting, _share(setting.exact[patch]))),
        *top,
        Column("largest", lambda setting: f"{setting.median_side:g}"),
        Column("paper", lambda setting: NONE if paper(setting) is None else str(paper(setting))),
    )
    ordered = [setting for some in by_family(settings).values() for setting in some]
    guessed = any(one is not None and one.voting == "threshold" for one in map(paper, ordered))
    return [Table.of(columns, ordered).markdown(), *(["", _NOT_NOTED] if guessed else [])]


def _unknown_side(settings: Sequence[Setting], choice: Choice | None) -> list[str]:
    telling = telling_sides(settings)
    sides = [m for m in telling if m % -(-len(telling) // _LINES) == 0 or m in (1, telling[-1])]
    if choice is None:
        lines = ["The envelope is the most that any of the settings reaches at a side: no one setting does throughout."]
        most = Column[int]("envelope (exact)", lambda m: _percent(envelope(settings)[m - 1], settings))
        return [*lines, "", Table.of((_SIDE, most), sides).markdown()]
    fixed = choice.for_all_sides(settings)
    lines = [
        f"One setting fixed for all sides, {literal(fixed)} (median {fixed.median_side:g}), against the best for each "
        "side;"
    ]
    lines += [f"both chosen on {choice.images}.", ""]
    best = {m: choice.at_side(settings, m) for m in sides}
    columns: tuple[Column[int], ...] = (
        _SIDE,
        Column("fixed (exact)", lambda m: _percent(fixed.exact_by_side[m - 1], settings)),
        Column("best for the side (exact)", lambda m: _percent(best[m].exact_by_side[m - 1], settings)),
        Column("setting", lambda m: str(best[m]), words=True),
    )
    return [*lines, Table.of(columns, sides).markdown()]


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.2%} ({low:.1%}–{high:.1%})".replace("%", "")


def _percent(hits: int, settings: Sequence[Setting]) -> str:
    return f"{100 * hits / settings[0].clean.total:.2f}"

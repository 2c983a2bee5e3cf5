"""The Markdown that a sweep ends with: ours beside the paper's, and squares of unknown side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluate.results.metrics import Share
from evaluate.results.published import LEVINE_FEIZI, published
from evaluate.sweep.metrics import Choice, Setting, by_family, envelope, telling_sides
from evaluate.sweep.records import Run
from robustpatch.cli.text import markdown as literal

_WORDS = ("ablation", "voting", "checkpoint", "setting")  # columns that hold no numbers
_NOT_NOTED = "† the paper's best threshold; which of 0.2, 0.3 and 0.4 it is was not noted"
_LINES = 40  # of the table of sides; of more, every second, third, … is shown, the first and the last


def markdown(run: Run, settings: Sequence[Setting], choice: Choice | None) -> str:
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


def _notes(run: Run, settings: Sequence[Setting], choice: Choice | None) -> list[str]:
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
    names = ["ablation", "voting", "checkpoint", "clean", "certified (margin)", "certified (exact)"]
    names += [f"top {k} {what}" for k in settings[0].clean_top for what in ("clean", "certified")]
    names += ["largest", "paper"]
    lines, noted = _header(names), True
    for some in by_family(settings).values():
        best = None if choice is None else choice.against(some, patch)
        for setting in some:
            paper = published(dataset, setting.ablation, setting.voting, patch)
            noted &= paper is None or paper.voting != "threshold"
            mark = "**" if setting is best else ""
            cells = (
                f"{mark}{setting.ablation}{mark}",
                setting.voting,
                literal(setting.checkpoint),
                _share(setting.clean),
                _share(setting.margin[patch]),
                f"{mark}{_share(setting.exact[patch])}{mark}",
                *(
                    _share(by_k[k])
                    for k in setting.clean_top
                    for by_k in (setting.clean_top, setting.certified_top[patch])
                ),
                f"{setting.median_side:g}",
                "–" if paper is None else str(paper),
            )
            lines.append(_row(cells))
    return lines if noted else [*lines, "", _NOT_NOTED]


def _unknown_side(settings: Sequence[Setting], choice: Choice | None) -> list[str]:
    telling = telling_sides(settings)
    sides = [m for m in telling if m % -(-len(telling) // _LINES) == 0 or m in (1, telling[-1])]
    if choice is None:
        lines = ["The envelope is the most that any of the settings reaches at a side: no one setting does throughout."]
        lines += ["", *_header(("side", "envelope (exact)"))]
        return lines + [_row((str(m), _percent(envelope(settings)[m - 1], settings))) for m in sides]
    fixed = choice.for_all_sides(settings)
    lines = [
        f"One setting fixed for all sides, {literal(fixed)} (median {fixed.median_side:g}), against the best for each "
        "side;"
    ]
    lines += [f"both chosen on {choice.images}.", ""]
    lines += _header(("side", "fixed (exact)", "best for the side (exact)", "setting"))
    for m in sides:
        best = choice.at_side(settings, m)
        accuracies = (_percent(s.exact_by_side[m - 1], settings) for s in (fixed, best))
        lines.append(_row((str(m), *accuracies, literal(best))))
    return lines


def _header(names: Sequence[str]) -> list[str]:
    return [_row(names), _row("---" if name in _WORDS else "---:" for name in names)]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.2%} ({low:.1%}–{high:.1%})".replace("%", "")


def _percent(hits: int, settings: Sequence[Setting]) -> str:
    return f"{100 * hits / settings[0].clean.total:.2f}"

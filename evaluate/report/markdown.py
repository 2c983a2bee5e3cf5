"""A report -> Markdown, for where no page can be shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evaluate.report.data import Report
from evaluate.report.page import certified_name, facts, headline, interval, notes, outcome_names, parts, percent
from evaluate.results.metrics import Share
from robustpatch.cli.text import code_block
from robustpatch.cli.text import markdown as literal


def markdown(report: Report) -> str:
    """The same as the page, its pictures as tables; what comes from names is escaped."""
    lines = [f"# {literal(report.title)}"]
    if not report.finished:
        lines.append(f"**UNFINISHED**: {report.images:,} of {report.planned:,} images; all that follows is of those.")
    word, _, sentence = report.verdict.partition(": ")
    lines += [f"**{word}**: {literal(sentence)}.", _headline(report)]
    rows = [(part["name"], part["count"], percent(part["share"])) for part in parts(report)]
    lines += [_table(("of all images", "images", "share"), rows), literal(report.assumption)]
    lines += [literal(report.gap[0].upper() + report.gap[1:]) + "."] if report.gap else []
    certifies = report.summary["certified_exact"] is not None
    lines += ["## Certified accuracy against patch size"] if certifies else []
    if report.sides:
        sides = [(f"{m}×{m}", percent(s.value), interval(s), s.hits) for m, s in report.sides.items()]
        lines.append(_table(("square", "accuracy", "95% interval", "images"), sides))
    elif certifies:
        lines.append("The certificates of this run carry no votes, so nothing is known of other patch sizes.")
    lines += ["## Attacks", _attacks(report) if report.attacks else "No attack was run.", "## Classes"]
    classes = [(r.name, r.clean.total, *map(_short, (r.clean, r.certified, r.under_all))) for r in report.classes]
    lines.append(_table(("class", "images", "clean", "certified", "under attack"), classes))
    if report.cards:
        cards = [(card.index, outcome_names(report)[card.outcome], facts(card)) for card in report.cards]
        lines += ["## Images to look at", _table(("image", "outcome", ""), cards)]
    lines.append("## How to repeat the run")
    commands = ([report.command] if report.command else []) + report.replays
    if commands:
        lines.append(code_block(commands))
    lines.append(_table(("name", "value"), notes(report)))
    return "\n\n".join(lines) + "\n"


def _headline(report: Report) -> str:
    found = headline(report)
    named = {
        "clean": found["clean"],
        "certified (margin)": found["certified_margin"],
        certified_name(report): found["certified_exact"],
        "under all attacks": found["under_all"] if report.attacked else None,
    }
    rows = [(name, _short(one), "" if one is None else interval(one)) for name, one in named.items()]
    return _table(("", "accuracy", "95% interval"), rows)


def _attacks(report: Report) -> str:
    names = ("attack", "accuracy", "95% interval", "broken", "evaluations, open images", "certified images", "budget")
    rows = [
        (
            row.name,
            percent(row.accuracy.value),
            interval(row.accuracy),
            row.broken,
            f"{row.evaluations:,} on {row.open_images:,}",
            f"{row.evaluations_certified:,} on {row.certified_images:,}",
            "its own" if row.budget is None else f"{row.budget:,}",
        )
        for row in report.attacks
    ]
    return _table(names, rows)


def _short(share: Share | None) -> str:
    return "–" if share is None else percent(share.value)


def _table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(literal(str(cell)) for cell in line) + " |" for line in lines)

"""A report -> Markdown, for where no page can be shown."""

from __future__ import annotations

from evaluate.report.cards import Card
from evaluate.report.data import Report
from evaluate.report.page import attacks_table, certified_name, facts, headline, notes_table, outcome_names, parts
from evaluate.results.report_columns import CLASSES, PARTS, SHARES, Line, Sizes
from evaluate.results.table import Column, Table
from robustpatch.cli.text import code_block
from robustpatch.cli.text import markdown as plain


def markdown(report: Report) -> str:
    """The same as the page, its pictures as tables; what comes from names is escaped."""
    lines = [f"# {plain(report.title)}"]
    if not report.finished:
        lines.append(f"**UNFINISHED**: {report.images:,} of {report.planned:,} images; all that follows is of those.")
    word, _, sentence = report.verdict.partition(": ")
    lines += [f"{plain(report.survival)}.", f"**{word}**: {plain(sentence)}.", _headline(report)]
    lines += [Table.of(PARTS, parts(report)).markdown(), plain(report.assumption)]
    lines += [plain(report.gap[0].upper() + report.gap[1:]) + "."] if report.gap else []
    certifies = report.summary["certified_exact"] is not None
    lines += ["## Certified accuracy against patch size"] if certifies else []
    if report.sides:
        lines.append(Table.of(Sizes.of(report.growing).columns, report.sides.items()).markdown())
    elif certifies:
        lines.append("The certificates of this run carry no votes, so nothing is known of other patch sizes.")
    lines += ["## Attacks", attacks_table(report).markdown() if report.attacks else "No attack was run."]
    lines += ["## Classes", Table.of(CLASSES, report.classes).markdown()]
    if report.cards:
        names = outcome_names(report)
        cards: tuple[Column[Card], ...] = (
            Column("image", lambda card: f"{card.index}: {card.file}" if card.file else f"{card.index}", words=True),
            Column("outcome", lambda card: names[card.outcome], words=True),
            Column("", lambda card: facts(card, report.growing), words=True),
        )
        lines += ["## Images to look at", Table.of(cards, report.cards).markdown()]
    lines.append("## How to repeat the run")
    commands = ([report.command] if report.command else []) + report.replays
    if commands:
        lines.append(code_block(commands))
    lines.append(notes_table(report).markdown())
    return "\n\n".join(lines) + "\n"


def _headline(report: Report) -> str:
    found = headline(report)
    lines = [
        Line("clean", found["clean"]),
        *([] if found["false_alerts"] is None else [Line("false alerts", found["false_alerts"])]),
        Line("certified (margin)", found["certified_margin"]),
        Line(certified_name(report), found["certified_exact"]),
        Line("under all attacks", found["under_all"] if report.attacked else None),
    ]
    return Table.of(SHARES, lines).markdown()

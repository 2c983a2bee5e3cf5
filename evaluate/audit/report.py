"""An audit as a table on the screen, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from evaluate.audit.finding import Audit, Finding
from evaluate.results.table import Code, Column, Table
from robustpatch.cli.text import code_block
from robustpatch.cli.text import markdown as plain

_STYLES = {"broken": "bold red", "held": "bold green", "not tested": "bold yellow"}

_FINDINGS: tuple[Column[Finding], ...] = (
    Column("check", lambda one: one.check, words=True),
    Column("severity", lambda one: one.severity, words=True),
    Column("times", lambda one: f"{one.times}"),
    Column("what", lambda one: one.sentence, words=True),
)


def verdict(audit: Audit) -> str:
    """One line: the patch and the images named, what became of the certificates, and what else was found."""
    tested = (
        f"{audit.attacked} certificates tested, on {audit.images} images ({audit.evaluations:,} evaluations) and "
        f"{audit.ballots} ballots of dictated votes; {audit.seconds:.1f} s"
    )
    other = sum(finding.severity == "inconsistent" for finding in audit.findings)
    more = f"; {other} inconsistencies" if other else ""
    early = "" if audit.stopped is None else f"; stopped early by {audit.stopped}"
    named = f"{audit.threat} patch on {audit.shape} images"
    if audit.named:
        return f"{named}: BROKEN: certified predictions change{more}{early}; {tested}"
    if audit.verdict == "broken":
        return f"{named}: no certified prediction was changed, but BROKEN for {_others(audit)}{more}{early}; {tested}"
    if audit.verdict == "held":
        return f"{named}: HELD: no certified prediction was changed{more}; {tested}"
    if audit.stopped is not None:
        return f"{named}: NOT TESTED to the end: no certified prediction was changed so far{more}{early}; {tested}"
    return f"{named}: NOT TESTED: nothing was certified{more}; {tested}"


def _others(audit: Audit) -> str:
    """The patches and images that broke a certificate."""
    places = [one.where for one in audit.findings if one.severity == "broken certificate"]
    return ", ".join(dict.fromkeys(f"a {place[0]} patch on {place[1]} images" for place in places if place))


def table(audit: Audit) -> Group:
    """Findings, what the base was shown, what could not be tested, and the verdict."""
    found = Table.of(_FINDINGS, audit.findings).terminal(f"{audit.name}, {audit.threat} patch", wrap=True)
    parts: list[RenderableType] = [found] if audit.findings else [Text("no findings")]
    parts += [Text(line) for line in audit.views]
    parts += [Text(f"not tested: {what}: {why}", style="yellow") for what, why in audit.untested]
    return Group(*parts, Text(verdict(audit), style=_STYLES[audit.verdict]))


def markdown(audit: Audit, commands: Sequence[str] = ()) -> str:
    """The same as a file, with the commands that show the findings again."""
    lines = [f"# {plain(audit.name)}, {plain(audit.threat)} patch", "", plain(verdict(audit)), ""]
    if audit.findings:
        file = Column[Finding]("file", lambda one: Code("" if one.path is None else one.path.name), words=True)
        lines.append(Table.of((*_FINDINGS, file), audit.findings).markdown())
        lines.append("")
    if commands:
        lines += ["## To see them again", "", code_block(commands), ""]
    for title, items in (
        ("What the base was shown", list(audit.views)),
        ("What could not be tested", [f"{what}: {why}" for what, why in audit.untested]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {plain(item)}" for item in items), ""]
    return "\n".join(lines)

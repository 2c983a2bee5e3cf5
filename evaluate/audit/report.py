"""An audit as a table on the screen, and as Markdown."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluate.audit.finding import Audit

_STYLES = {"broken": "bold red", "held": "bold green", "not tested": "bold yellow"}


def verdict(audit: Audit) -> str:
    """One line: what became of the certificates, and what else was found."""
    tested = (
        f"{audit.attacked} certificates tested, on {audit.images} images ({audit.evaluations:,} evaluations) and "
        f"{audit.ballots} ballots of dictated votes; {audit.seconds:.1f} s"
    )
    other = sum(finding.severity == "inconsistent" for finding in audit.findings)
    more = f"; {other} inconsistencies" if other else ""
    if audit.verdict == "broken":
        return f"BROKEN: certified predictions change{more}; {tested}"
    if audit.verdict == "held":
        return f"HELD: no certified prediction was changed{more}; {tested}"
    return f"NOT TESTED: nothing was certified{more}; {tested}"


def table(audit: Audit) -> Group:
    """Findings, what the base was shown, what could not be tested, and the verdict."""
    found = Table(title=Text(f"{audit.name}, {audit.threat} patch"), title_justify="left", box=SIMPLE_HEAD)
    for name in ("check", "severity", "times", "what"):
        found.add_column(name, no_wrap=name == "times", justify="right" if name == "times" else "left")
    for finding in audit.findings:
        found.add_row(finding.check, finding.severity, str(finding.times), Text(finding.sentence))
    parts: list[Table | Text] = [found] if audit.findings else [Text("no findings")]
    parts += [Text(line) for line in audit.views]
    parts += [Text(f"not tested: {what}: {why}", style="yellow") for what, why in audit.untested]
    return Group(*parts, Text(verdict(audit), style=_STYLES[audit.verdict]))


def markdown(audit: Audit) -> str:
    """The same as a file."""
    lines = [f"# {audit.name}, {audit.threat} patch", "", verdict(audit), ""]
    if audit.findings:
        lines += ["| check | severity | times | what | file |", "| --- | --- | ---: | --- | --- |"]
        for one in audit.findings:
            file = "" if one.path is None else f"`{one.path.name}`"
            lines.append(f"| {one.check} | {one.severity} | {one.times} | {_cell(one.sentence)} | {file} |")
        lines.append("")
    for title, items in (
        ("What the base was shown", list(audit.views)),
        ("What could not be tested", [f"{what}: {why}" for what, why in audit.untested]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {_cell(item)}" for item in items), ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())

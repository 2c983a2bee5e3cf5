"""A gate's lines for other programs: JUnit XML, SARIF and Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath
from xml.etree import ElementTree

from evaluate.gate.judge import Line
from evaluate.results.table import Column, Table
from robustpatch.cli.text import markdown as plain
from robustpatch.cli.text import one_line

LINES: tuple[Column[Line], ...] = (
    Column("", lambda line: "pass" if line.passed else "FAIL", words=True),
    Column("rule", lambda line: line.name, words=True),
    Column("found", lambda line: line.found, words=True),
    Column("wanted", lambda line: line.wanted.removeprefix("wanted: "), words=True),
    Column("", lambda line: line.why, words=True),
)


def junit(title: str, lines: Sequence[Line]) -> bytes:
    """A test suite with a test case for each line."""
    failures = sum(not line.passed for line in lines)
    suite = ElementTree.Element(
        "testsuite", name=one_line(title), tests=str(len(lines)), failures=str(failures), errors="0"
    )
    for line in lines:
        case = ElementTree.SubElement(suite, "testcase", classname=f"gate.{line.rule}", name=one_line(line.name))
        if not line.passed:
            ElementTree.SubElement(case, "failure", message=one_line(f"{line.found}, {line.wanted}")).text = one_line(
                line
            )
        else:
            ElementTree.SubElement(case, "system-out").text = one_line(line)
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def sarif(title: str, lines: Sequence[Line], gate: str) -> bytes:
    """Results in the Static Analysis Results Interchange Format 2.1.0, each at the file of the rules."""
    place = {"physicalLocation": {"artifactLocation": {"uri": PurePath(gate).as_posix()}, "region": {"startLine": 1}}}
    results = [
        {
            "ruleId": line.rule,
            "kind": "pass" if line.passed else "fail",
            "level": "none" if line.passed else "error",
            "message": {"text": one_line(line)},
            "locations": [place],
            "properties": {"name": line.name, "found": line.found, "wanted": line.wanted, "why": line.why},
        }
        for line in lines
    ]
    rules = [{"id": rule} for rule in dict.fromkeys(line.rule for line in lines)]
    driver = {"name": "robustpatch gate", "version": version("robustpatch"), "rules": rules}
    run = {"tool": {"driver": driver}, "properties": {"title": title}, "results": results}
    return json.dumps({"version": "2.1.0", "runs": [run]}, indent=1).encode()


def summary(title: str, lines: Sequence[Line]) -> str:
    """A summary for a pull request."""
    failed = sum(not line.passed for line in lines)
    verdict = f"**failed**: {failed} of {len(lines)} rules" if failed else f"passed: {len(lines)} rules"
    return f"## {plain(title)}: {verdict}\n\n{Table.of(LINES, lines).markdown()}\n"

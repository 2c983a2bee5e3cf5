"""Calls of the command line inside this process, and what a refused one looks like."""

from __future__ import annotations

import re

from typer.testing import CliRunner

from evaluate import attack_vs_cert as command

PROGRESS = re.compile(r"\d+/\d+ \d+:\d\d:\d\d$")


def call(*arguments: object):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def refused(result, message):
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if not PROGRESS.search(line)]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in result.output

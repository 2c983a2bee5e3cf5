"""Calls of the command line inside this process, and what a refused one looks like."""

from __future__ import annotations

from typer.testing import CliRunner

from evaluate import attack_vs_cert as command


def call(*arguments: object):
    return CliRunner().invoke(command.app, [str(argument) for argument in arguments])


def refused(result, message):
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0], lines[0]
    assert "Traceback" not in result.output

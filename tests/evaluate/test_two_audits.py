"""Two audits at once do not write into one folder."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from evaluate.audit.__main__ import app
from tests.evaluate.commands import BRIGHT

fcntl = pytest.importorskip("fcntl", reason="folders cannot be held here")


def test_the_second_is_refused_before_it_removes_anything(tmp_path, monkeypatch):
    """Where the first has gone, however it ended, nothing is in the way."""
    monkeypatch.setattr("robustpatch.storage.locks._PATIENCE", 0.0)
    (tmp_path / "bright.py").write_text(BRIGHT)
    output = tmp_path / "audit"
    given = [f"{tmp_path}/bright.py:Bright", "--shape", "1x4x8", "--patch", "1x1", "--images", "2", "--budget", "4"]
    given += ["--output", str(output)]
    assert CliRunner().invoke(app, given).exit_code == 1
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    other = os.open(output, os.O_RDONLY)  # as another process has it open
    fcntl.flock(other, fcntl.LOCK_EX)
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 2, found.output
    assert "another process is at work; wait for its end, or name another output" in " ".join(found.output.split())
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    os.close(other)
    assert CliRunner().invoke(app, given).exit_code == 1

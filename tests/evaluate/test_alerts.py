"""Detection on the command line: what is certified, what an attack must do, and what a board says of it."""

from __future__ import annotations

import json

from evaluate.cli.options import Options
from evaluate.leaderboard.config import Entry
from evaluate.leaderboard.rows import Row, Speed
from evaluate.leaderboard.table import table
from evaluate.results.metrics import summarise
from evaluate.runs.records import Record, read_records
from tests.evaluate.calls import call, refused

DEFENSE = "minority-reports:masks=3,hidden=mask,confidence=0.9"
QUICK = ("--num-images", 4, "--attacks", "sparse-rs", "--budget", 30, "--certified-budget", 30, "--gallery", 1)


def test_a_run_of_detection(tmp_path):
    """In place of a checkpoint's own PatchCleanser: detection and false alerts, and the criterion of attacks."""
    model = ("--checkpoint", "mnist-patchcleanser", "--output", tmp_path / "out")
    result = call(*model, "--defense", DEFENSE, *QUICK)
    assert result.exit_code == 0, result.output
    assert "certified detection" in result.stdout
    assert "false alerts" in result.stdout
    assert "without an alert" in " ".join(result.stdout.split())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["false_alerts"]["total"] == 4
    assert summary["configuration"]["defense"] == DEFENSE
    for record in read_records(tmp_path / "out"):
        assert record.alerted == (record.prediction < 0)
        assert not any(one.broken for one in record.attacks if one.prediction in (-1, record.prediction))
    assert "false alerts" in (tmp_path / "out" / "report.html").read_text()
    text = "shows hidden pixels to the network by"
    refused(call(*model, "--defense", "minority-reports:masks=3"), text)


def record(index: int, prediction: int, certified: bool, alerted: bool | None) -> Record:
    return Record(index, 1, prediction, True, certified, None, None, None, None, 0, 0, alerted=alerted)


def test_rows_of_a_board():
    """Recovery and detection in columns of their own, false alerts beside; without such a row, no such columns."""
    recovery = [record(i, 1, i < 5, None) for i in range(10)]
    detection = [record(i, -1 if i == 0 else 1, i > 1, i == 0) for i in range(10)]
    speed = Speed(1.0, 1.0, 1, 1, "machine", 1)
    rows = []
    for name, records in (("PatchCleanser", recovery), ("minority reports", detection)):
        entry = Entry(name, Options(), 0, 1)
        rows.append(Row(entry, summarise(records), None, speed, None, 1))
    shown = table(rows)
    cells = [dict(zip(shown.names, row, strict=True)) for row in shown.rows]
    assert [cell["certified"] for cell in cells] == ["50.0", "–"]
    assert [cell["certified detection"] for cell in cells] == ["–", "80.0"]
    assert [cell["false alerts"] for cell in cells] == ["–", "10.0"]
    assert "false alerts" not in table(rows[:1]).names

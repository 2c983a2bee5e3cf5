"""A run on Ray that is repeated when it is finished says again what it said, and does nothing."""

from __future__ import annotations

import json

import pytest

from evaluate.runs.cluster import Cluster
from evaluate.runs.worker import Worker, conditions
from tests.evaluate.calls import call

pytest.importorskip("ray", reason="Ray has no wheel for this Python")


@pytest.fixture
def in_here(monkeypatch):
    """A Ray of one worker, which is this process; how often it was started."""
    started = []

    def work(cluster, job, images, missing, on_progress):
        started.append(len(missing))
        worker = Worker()
        sample = images.batch(range(min(8, job.settings.num_images)))[0]
        worker.prepare((job, sample, conditions(job.settings.device)))
        for batch in missing:
            worker.do(*images.batch(batch), batch.start)

    monkeypatch.setattr(Cluster, "__call__", work)
    monkeypatch.setattr("evaluate.attack_vs_cert.write_report", str)
    return started


def test_a_finished_run_says_again_what_it_said(checkpoint, tmp_path, in_here):
    """Who made the records, and by how much their scores moved, is sealed with them; times apart, nothing changes."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 4, "--batch-size", 2, "--gallery", 2]
    given += ["--ray", "--num-workers", 1, "--plain", "--output", tmp_path]

    def said():
        result = call(*given)
        assert result.exit_code == 0, result.output
        summary = json.loads((tmp_path / "summary.json").read_text())
        return result, {key: value for key, value in summary.items() if key != "seconds"}

    _, first = said()
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "summary.json"]
    before = {path: path.read_bytes() for path in kept}
    again, second = said()
    assert second == first
    assert first["measured_deviation"] is not None
    assert [sorted(machine) for machine in first["workers"]] == [["device", "host", "threads"]]
    assert {path: path.read_bytes() for path in before} == before
    assert in_here == [2]
    assert again.stderr.splitlines() == ["4/4 done"]


def test_a_run_that_is_gone_on_with_names_all_who_made_it(checkpoint, tmp_path, in_here):
    """Also those of the first part, and nobody for what was done without a cluster."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 4, "--batch-size", 2]
    given += ["--output", tmp_path]
    assert call(*given).exit_code == 0
    assert "workers" not in json.loads((tmp_path / "summary.json").read_text())
    next(iter(sorted(tmp_path.glob("records/*")))).unlink()
    for _ in range(2):
        assert call(*given, "--ray").exit_code == 0
        assert len(json.loads((tmp_path / "summary.json").read_text())["workers"]) == 1
    assert in_here == [1]

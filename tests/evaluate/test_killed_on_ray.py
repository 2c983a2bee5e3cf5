"""Workers of a Ray that die between any two steps of their writing: the run gets through, as if none had."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from attacks import PatchPGD
from evaluate import Settings, evaluate
from evaluate.runs import cluster as module
from evaluate.runs.cluster import Cluster
from robustpatch.ablations.kinds import Columns
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.small_runs import BATCH, NUMBER, scene, timeless
from tests.killed import Steps

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
_dying: list[Steps] = []  # of this process


@dataclass(frozen=True)
class Mortal(PatchPGD):
    """An attack after which the n-th process that calls it dies at step n in `folder`, for n up to `most`."""

    folder: str = ""
    marks: str = ""
    most: int = 0

    def __call__(self, model, x, y, threat, *, generator):
        if not _dying:
            _dying.append(Steps(self.folder, self._number()))
        return super().__call__(model, x, y, threat, generator=generator)

    def _number(self) -> int | None:
        for number in count(1):
            try:
                Path(self.marks, str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return number if number <= self.most else None
        return None


@pytest.mark.slow
def test_workers_killed_at_any_step(tmp_path, monkeypatch):
    """Records are the local run's, and nothing half written is left."""
    monkeypatch.setattr(module, "LOSSES", 99)
    marks, output = tmp_path / "marks", tmp_path / "ray"
    marks.mkdir()
    attacks = (Mortal(steps=1, restarts=1, folder=str(output), marks=str(marks), most=16),)
    settings, notices = Settings(NUMBER, BATCH, 300, 0, gallery=6), []
    model, threat = smoothed(Level(3), Columns(1), 3), PatchThreat(2, 2)
    workers = Cluster(num_workers=2, on_notice=notices.append)
    records = evaluate(model, scene(), threat, attacks, settings, output, workers=workers)
    assert sum("a worker was lost with images" in one for one in notices) == 16
    plain = (PatchPGD(steps=1, restarts=1),)
    assert timeless(records) == timeless(evaluate(model, scene(), threat, plain, settings, tmp_path / "local"))
    found, local = ({str(path.relative_to(one)) for path in one.rglob("*")} for one in (output, tmp_path / "local"))
    assert found == local
    exhibits = sorted(path.name for path in (output / "exhibits").iterdir())
    assert exhibits
    for name in exhibits:
        assert (output / "exhibits" / name).read_bytes() == (tmp_path / "local" / "exhibits" / name).read_bytes()

"""Accuracy against evaluations, from the records of several runs."""

from __future__ import annotations

import shutil

import pytest
from typer.testing import CliRunner

from attacks import ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate, summarise
from evaluate.curve import app, read_curve
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.attacks.toys import Lookup, images, smoothed
from tests.evaluate.planted import image_set

SIZE, THREAT = (5, 6), PatchThreat(2, 2)


def run(output, budget, threat=THREAT):
    model = smoothed(Lookup(2, 2 * 30, 3, favour=3.0), Columns(1), 3, Threshold(0.3))
    x = images(12, SIZE, binary=True)
    data = image_set(x, model.predict(x), 3)
    attacks = [PatchPGD(steps=1, restarts=9, budget=budget), ExhaustivePGD(steps=1, rounds=0, budget=budget)]
    settings = Settings(12, batch_size=6, certified_budget=20)
    return evaluate(model, data, threat, attacks, settings, output, configuration={"budget": budget})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {budget: (folder / f"b{budget}", run(folder / f"b{budget}", budget)) for budget in (20, 200)}


def test_points_are_those_of_the_records(runs):
    """For each run and attack the accuracy and the evaluations on open images, over all images."""
    curve = read_curve([folder for folder, _ in runs.values()])
    assert [(point.attack, point.budget) for point in curve.points] == [
        ("exhaustive", 20),
        ("exhaustive", 200),
        ("pgd-9", 20),
        ("pgd-9", 200),
    ]
    for point in curve.points:
        records = runs[point.budget][1]
        own = [a for r in records for a in r.attacks if a.attack == point.attack and not r.certified]
        assert point.evaluations == sum(a.evaluations for a in own) / 12
        assert point.accuracy.hits == sum(r.correct for r in records) - sum(a.broken for a in own)
    summary = summarise(runs[20][1])
    assert (curve.clean, curve.certified) == (summary.clean, summary.certified_exact)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_picture_is_drawn(runs, tmp_path, ending):
    """The command writes a picture and the table beside it."""
    output = tmp_path / "new" / f"curve.{ending}"
    result = CliRunner().invoke(app, [*(str(folder) for folder, _ in runs.values()), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert output.read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    assert "exhaustive" in result.output
    assert "200" in result.output


def test_runs_that_do_not_belong_together_are_refused(runs, tmp_path):
    """Another threat, nothing at all, a run killed half-way, a picture of no known kind."""
    first = shutil.copytree(runs[20][0], tmp_path / "copy")
    run(tmp_path / "other", 20, PatchThreat(1, 1))
    with pytest.raises(InvalidInput, match="another threat"):
        read_curve([first, tmp_path / "other"])
    with pytest.raises(InvalidInput, match=r"no run\.json"):
        read_curve([tmp_path / "nothing"])
    next((first / "records").glob("*.parquet")).unlink()
    with pytest.raises(InvalidInput, match="6 of 12 images"):
        read_curve([first])
    result = CliRunner().invoke(app, [str(first), "--output", str(tmp_path / "curve.gif")])
    assert result.exit_code == 2
    assert "let it end in .png" in result.stderr

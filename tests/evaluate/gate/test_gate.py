"""Floors held against runs, the files that a gate writes, and its command."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evaluate.cli.program import app
from evaluate.gate import Answers, Gate, judge, read_gate
from evaluate.gate.convert import int8
from evaluate.gate.documents import junit, sarif, summary
from evaluate.gate.judge import Line
from evaluate.gate.rules import Baseline, Floor
from evaluate.runs.completed_run import CompletedRun, read_run
from robustpatch.errors import InvalidInput
from tests.evaluate.small_runs import run as small_run

EXAMPLES = Path(__file__).parents[3] / "examples"
KEPT = np.array([True] * 6 + [False] * 4)


def answers(threat: str = "5x5", **more) -> Answers:
    kept = {"clean": KEPT | True, "certified": KEPT, "under attack": KEPT}
    given = {"labels": np.arange(10) % 2, "kept": kept, "largest": np.arange(10), **more}
    return Answers("run", threat, "images", ("cat", "dog"), **given)


def passed(*floors: Floor, runs=None, **more) -> list[bool]:
    return [line.passed for line in judge(Gate(floors=floors, **more), runs or [answers()])]


def test_floors():
    """Shares, their lower ends, classes and sides; one that is just reached passes."""
    assert passed(Floor(least=60.0), Floor(least=60.1)) == [True, True, False]
    assert passed(Floor(least=26.2, bound=True), Floor(least=26.3, bound=True)) == [True, True, False]
    assert passed(Floor(least=60, label="each")) == [True, True, True]
    assert passed(Floor(least=61, label="each"), Floor(least=60, label="dog")) == [True, False, False, True]
    assert passed(Floor(least=50, side=5), Floor(least=51, side=5)) == [True, True, False]
    third = np.arange(3) == 0
    assert passed(Floor(least=100 / 3), runs=[answers(labels=np.zeros(3), kept={"certified": third})]) == [True, True]


def test_threats():
    """A floor of a threat is of the run against it, or, under attack, of that alternative of a run against several."""
    wide = answers("2x9", kept={"certified": ~KEPT})
    both = answers("5x5,2x9", alternatives={"2x9": ~KEPT, "5x5": KEPT})
    runs = [answers(), wide]
    assert passed(Floor(least=60, threat="5x5"), Floor(least=41, threat="2x9"), runs=runs)[2:] == [True, False]
    under = Floor(least=41, measure="under attack", threat="2x9")
    assert passed(under, runs=[both]) == [True, False]
    for floor, some, message in (
        (Floor(least=1), runs, "threat is None, which 2 of 2 runs are against (5x5, 2x9)"),
        (Floor(least=1, threat="1x1"), runs, "threat is 1x1, which 0 of 2"),
        (Floor(least=1, label="cow"), [wide], "label is 'cow'; the run has cat, dog"),
        (Floor(least=1, measure="clean"), [wide], "measure is 'clean', of which run says nothing"),
        (Floor(least=1, side=3), [answers(largest=None)], "side is 3, but no run tells"),
    ):
        with pytest.raises(InvalidInput) as refused:
            judge(Gate(floors=(floor,)), some)
        assert message in str(refused.value)


def test_verdicts():
    """A broken certificate never passes; an untested one where it need not be tested."""
    for verdict, held, fine in (
        ("broken", False, False),
        ("not tested", False, True),
        ("not tested", True, False),
        ("held", True, True),
    ):
        assert passed(runs=[answers(verdict=verdict)], held=held) == [fine]


def test_a_stored_run_of_other_things_is_no_baseline():
    gate = Gate(baseline=Baseline(run="b", measures=["under attack"]))
    for other, message in (
        (answers("4x4"), "baseline run is against 4x4, as 0 of the runs are"),
        (answers(labels=np.zeros(9)), "is of other images"),
        (answers(asked={"attacks": ["x"]}), "was run with another attacks"),
    ):
        with pytest.raises(InvalidInput) as refused:
            judge(gate, [answers(asked={"attacks": ["y"]})], other)
        assert message in str(refused.value)


def test_answers_of_records(tmp_path):
    """As a run's records have them, image by image."""
    records = small_run(tmp_path)
    found = Answers.of(read_run(tmp_path))
    assert found.kept["certified"].tolist() == [bool(r.certified_exact and r.correct) for r in records]
    assert found.kept["under attack"].tolist() == [r.correct and not r.broken for r in records]
    assert found.largest is not None
    assert 0 < found.kept["certified"].sum() < len(records)
    assert (found.largest >= 2).tolist() == found.kept["certified"].tolist()  # of the run's own 2x2
    bare = CompletedRun("x", {**read_run(tmp_path).claim, "attacks": []}, records)
    assert "under attack" not in Answers.of(bare).kept


def test_documents():
    """Each line is in each document, as text: no mark-up, and no character that XML has not."""
    lines = [
        Line("floor", "a|b\x00<i>", True, "1", "wanted: 0"),
        Line("convert", "b", False, "1", "wanted: 2", "<why>"),
    ]
    suite = ElementTree.fromstring(junit("title\x07", lines))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.find("failure") is not None for case in suite] == [False, True]
    (run,) = json.loads(sarif("title", lines, "gate.toml"))["runs"]
    assert [one["level"] for one in run["results"]] == ["none", "error"]
    assert [one["id"] for one in run["tool"]["driver"]["rules"]] == ["floor", "convert"]
    text = summary("title", lines)
    assert "**failed**: 1 of 2 rules" in text
    assert r"a\|b\\x00\<i\>" in text


def test_int8_has_few_levels():
    """Of weights and of what enters a layer; what a layer computes stays near to what it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    x = torch.rand(64, 1, 4, 4)
    with torch.no_grad():
        before = model(x)
        after = int8(model, x)(x)
    assert all(len(row.unique()) <= 255 for row in model[0].weight.detach().flatten(1))
    scaled = model[3].weight.detach() / model[3].weight.detach().abs().amax(dim=1, keepdim=True) * 127
    assert torch.allclose(scaled, scaled.round(), atol=1e-3)
    assert 0 < (after - before).abs().max() < 0.02


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the rules of a gate, which makes a run of four images."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "gate.toml").write_text(
        'title = "digits"\n[[floor]]\nleast = 25\n[[convert]]\nto = "int8"\nlost = 50\n'
        f'[run]\nnum_images = 4\nattacks = "none"\noutput = "{folder}/run"\n'
    )
    done = CliRunner().invoke(app, ["gate", f"{folder}/gate.toml", "--output", f"{folder}/out"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == "digits: all rules passed"
    assert "pass  certificates in int8: 0 of " in done.stdout
    return folder


def test_the_command(place):
    """Status 0 and three files, 1 for a rule that is not met, 2 for what is no rule."""
    assert {path.name for path in (place / "out").iterdir()} == {"gate.xml", "gate.sarif", "gate.md"}
    rules = place / "other.toml"
    for text, status, said in (
        (f'[[floor]]\nleast = 99\n[baseline]\nrun = "{place}/run"\ncatch = 0', 1, "robustness: 2 of 3 rules failed"),
        ("[[floor]]\nleast = 101", 2, "[[floor]] 1: least is 101; it must be at most 100"),
        ("[[floor]]\nleast = 1\nmeasure = 'x'", 2, "measure is 'x'; use 'clean', 'certified'"),
        ("[[floor]]\nleast = 1\nside = 2\nthreat = '1x1'", 2, "leave measure and threat out"),
        ("[[floor]]\nleast = 1\nsides = 2", 2, "sides is no option here"),
        ("[[convert]]\nto = 'int4'", 2, "to is 'int4'; use 'bfloat16', 'int8' or 'onnx'"),
        ("floor = 3", 2, "floor is 3; give a list"),
        ("[run]\nbudget = 0\n[[floor]]\nleast = 1", 2, "[run]: budget is 0"),
        ("title = 'x'", 2, "it has no rule"),
        ("[baseline]\nrun = 'nowhere'", 2, "run nowhere holds no run.json"),
    ):
        rules.write_text(text)
        done = CliRunner().invoke(app, ["gate", str(rules), str(place / "run")])
        assert done.exit_code == status, done.output
        assert said in (done.stderr if status == 2 else done.stdout), done.output
    rules.write_text("held = true")
    assert "the rules have no [run]" in CliRunner().invoke(app, ["gate", str(rules)]).stderr


def test_a_gate_as_it_is_read(place):
    gate = read_gate(place / "gate.toml")
    assert gate.floors == (Floor(least=25),)
    assert gate.run is not None
    assert (gate.run.num_images, gate.conversions[0].to) == (4, "int8")
    shipped = read_gate(EXAMPLES / "gate.toml")
    assert (len(shipped.floors), len(shipped.conversions), shipped.held) == (5, 2, True)

"""Runs side by side: shares as each run reports them, and tests of the images in which they differ."""

from __future__ import annotations

import json
from dataclasses import replace
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evaluate import compare as module
from evaluate.compare import Paired, compare, markdown, page
from evaluate.results.metrics import summarise
from evaluate.runs.completed_run import CompletedRun, read_run
from evaluate.runs.records import AttackRecord, Record
from robustpatch.errors import InvalidInput
from tests.evaluate.calls import call

CLAIM = {"dataset": "d", "threat": "5x5", "images_sha256": "s", "model_sha256": "m", "num_images": 0, "attacks": ["a"]}


def run(bits: list[tuple[bool, bool, bool]], name: str, **claim) -> CompletedRun:
    """A run in which image i is right, certified, broken as `bits[i]` says."""
    tried = AttackRecord("a", "5x5", True, False, True, True, 1, [0, 0], 10, 1.0, 0.0, patches=1)
    records = [
        Record(i, 1, int(right), True, proved, 0.0, None, None, None, 0, 9, attacks=[replace(tried, broken=broken)])
        for i, (right, proved, broken) in enumerate(bits)
    ]
    return CompletedRun(name, {**CLAIM, "num_images": len(bits), "model": name, **claim}, records)


BITS = st.lists(st.tuples(*[st.booleans()] * 6), min_size=1, max_size=30)


@given(BITS)
def test_paired_tests_count_images_that_differ(bits):
    """McNemar's exact p from its definition: twice the smaller tail of a fair coin, at most 1; shares are the runs'."""
    first, second = run([b[:3] for b in bits], "x"), run([b[3:] for b in bits], "y")
    found = compare([first, second])
    assert found.runs == ["x", "y"]
    for own, one in enumerate((first, second)):
        summary = summarise(one.records)
        shares = {measure: row[own] for measure, row in found.shares.items()}
        assert shares == {
            "clean": summary.clean,
            "certified (exact)": summary.certified_exact,
            "under all attacks": summary.under_all,
        }
    assert len(found.pairs) == 3
    for pair in found.pairs:
        ours, theirs = (module._answers(one, pair.measure) for one in (first, second))
        assert ours is not None
        assert theirs is not None
        assert pair.only_first == sum(a and not b for a, b in zip(ours, theirs, strict=True))
        assert pair.only_second == sum(b and not a for a, b in zip(ours, theirs, strict=True))
        n, least = pair.only_first + pair.only_second, min(pair.only_first, pair.only_second)
        tail = sum(comb(n, k) for k in range(least + 1)) / 2**n
        assert pair.p == pytest.approx(min(1, 2 * tail))
        assert pair.p <= pair.adjusted <= min(1, 3 * pair.p) + 1e-12


def test_holm_s_adjustment():
    """By hand: 0.01 × 3, 0.02 × 2, and 0.03 not below the second."""
    pairs = [Paired("", "", "", 0, 0, p, p) for p in (0.03, 0.01, 0.02)]
    assert [pair.adjusted for pair in module._holm(pairs)] == pytest.approx([0.04, 0.03, 0.04])


def test_what_cannot_be_compared():
    """Other images, and one run alone; a run without attacks or certificates has no such row."""
    one = run([(True, True, False)] * 3, "x")
    with pytest.raises(InvalidInput, match="name at least two"):
        compare([one])
    with pytest.raises(InvalidInput, match=r"run y has another images_sha256 than x; .* name runs on the same ones"):
        compare([one, run([(True, True, False)] * 3, "y", images_sha256="t")])
    bare = run([(True, False, False)] * 3, "y", attacks=[], threat="2x2")
    bare.records[:] = [replace(r, certified_exact=None, consistent=None, attacks=[]) for r in bare.records]
    found = compare([one, bare])
    assert {measure: row[1] is None for measure, row in found.shares.items()} == {
        "clean": False,
        "certified (exact)": True,
        "under all attacks": True,
    }
    assert [pair.measure for pair in found.pairs] == ["clean"]
    assert "| certified (exact) | 100.0 (29.2–100.0) | – |" in markdown(found)
    assert found.title == "3 d test images, 5x5 / 2x2 patch"
    same = [run([(True, True, False)], "x"), run([(True, True, False)], "x")]
    assert compare([replace(same[0], output="a/1"), replace(same[1], output="a/2")]).runs == ["1", "2"]
    assert compare([replace(same[0], output="a/1"), replace(same[1], output="b/1")]).runs == ["a/1", "b/1"]


def test_runs_that_were_attacked_otherwise_are_told(tmp_path):
    """By other attacks, the same with other settings, within another budget or under another threat: said beside the
    shares that hang on it, in each format.
    """
    one = run([(True, True, False)] * 3, "x")
    assert compare([one, run([(True, True, False)] * 3, "y")]).remarks == []
    for other, what in (
        ({"attacks": ["b"]}, "attacks; a difference under attack"),
        ({"certified_budget": 9}, "certified budget; a difference under attack"),
        ({"threat": "2x2"}, "threat; a difference in what is certified or under attack"),
        ({"top_k": 2, "attacks": ["b"]}, "top k, attacks; a difference in what is certified or under attack"),
    ):
        found = compare([one, run([(True, True, False)] * 3, "y", **other)])
        assert found.remarks == [f"x and y were run with another {what} may come from that alone"]
        assert found.remarks[0] in markdown(found)
        assert found.remarks[0] in page(found, ["x", "y"])
    unattacked = run([(True, True, False)] * 3, "y", attacks=[])
    assert compare([one, unattacked]).remarks == []  # its line is empty


def test_the_command(checkpoint, undefended, tmp_path):
    """Two runs of the evaluator: the table, Markdown and JSON; an unfinished or absent run is a wrong call."""
    shared = ("--attacks", "grey", "--budget", 100, "--num-images", 8, "--batch-size", 4)
    for name, weights in (("ours", checkpoint), ("bare", undefended)):
        result = call("--checkpoint", weights, *shared, "--output", tmp_path / name)
        assert result.exit_code == 0, result.output
    folders = [str(tmp_path / name) for name in ("ours", "bare")]
    result = CliRunner().invoke(module.app, [*folders, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for word in ("8 mnist-sample test images, 5x5 patch", "toy", "under all attacks", "image for image"):
        assert word in result.stdout
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["shares"]["clean"][1]["hits"] == 8
    assert content["shares"]["certified (exact)"][1] is None
    assert (tmp_path / "out" / "compare.md").read_text() == markdown(compare([read_run(f) for f in folders]))
    assert "were run with another" not in result.stdout
    html = (tmp_path / "out" / "compare.html").read_text()
    for word in ("8 mnist-sample test images", "toy", "plain", "Images that only one run has", "100.0%"):
        assert word in html
    assert "://" not in html
    next((tmp_path / "bare" / "records").iterdir()).unlink()
    result = CliRunner().invoke(module.app, folders)
    assert result.exit_code == 2
    assert "has 4 of 8 images; repeat its command first" in result.stderr
    result = CliRunner().invoke(module.app, [folders[0], str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "holds no run.json" in result.stderr

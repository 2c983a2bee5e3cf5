"""`--growing`: certified accuracy by the size of another shape, in records, identity and report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from evaluate import Settings, evaluate
from evaluate.report import page, read_report
from evaluate.report.write import write_report
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.exact import certify_votes
from robustpatch.errors import InvalidInput
from robustpatch.threats import Disc, Mask, Scaled, parse_growing, parse_threat
from robustpatch.threats.growing import growing_text
from tests.attacks.toys import Level, smoothed
from tests.evaluate import small_runs
from tests.evaluate.calls import call, refused

BAR = "mask:1x2/wA"


@pytest.mark.parametrize(("growing", "called"), [("disc", "disc:2"), (BAR, "2 pixels"), ("square", "2×2")])
def test_largest_sizes_of_the_family(growing, called, tmp_path):
    """Each image's record is the size up to which every threat of the family is certified; the report names it."""
    model = smoothed(Level(3), Columns(1), 3)
    settings = Settings(small_runs.NUMBER, 2, 300, 0, gallery=6, growing=growing)
    records = evaluate(model, small_runs.scene(), parse_threat("disc:2"), (), settings, tmp_path)
    x, _ = small_runs.scene().batch(range(small_runs.NUMBER))
    family, votes = parse_growing(growing), model.votes(x)
    for record in records:
        certified = []
        for n in range(1, 9):
            try:
                found = certify_votes(votes, model.ablation, family(n).on(4, 8), (4, 8))
            except InvalidInput:
                break
            certified.append(bool(found.certified[record.index]))
        assert record.largest_certified == ([*certified, False].index(False))
    assert any(record.largest_certified for record in records)
    configuration = json.loads((tmp_path / "run.json").read_text())
    assert configuration.get("growing", "square") == growing
    assert ("growing" in configuration) == (growing != "square")
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"| {called} |" in text
    name = growing.partition(":")[0]
    assert f"| {name} | accuracy" in text
    assert f"certified up to {called}" in text or "certified against no" in text
    report = read_report(tmp_path)
    assert {"disc": "diameter of a disc", "mask": "longer side of a scaled mask", "square": "side of a square patch"}[
        name
    ] in page(report)


def test_another_family_is_another_run(tmp_path):
    model = smoothed(Level(3), Columns(1), 3)
    for growing in ("square", "disc"):
        settings = Settings(2, 2, 300, 0, gallery=0, growing=growing)
        if growing == "square":
            evaluate(model, small_runs.scene(), Disc(2), (), settings, tmp_path)
            continue
        with pytest.raises(InvalidInput, match="another run \\(other growing"):
            evaluate(model, small_runs.scene(), Disc(2), (), settings, tmp_path)


def test_files_become_pixels(tmp_path):
    """The family of a picture is its pixels: no worker, and no later report, reads the file again."""
    Image.fromarray(np.array([[255, 255], [255, 0]], np.uint8)).save(tmp_path / "a.png")
    text = growing_text(f"mask:{tmp_path}/a.png")
    (tmp_path / "a.png").unlink()
    assert parse_growing(text) == Scaled(Mask.of(np.array([[True, True], [True, False]])))
    assert growing_text(" Disc ") == "disc"


def test_the_command_takes_and_refuses_families(checkpoint, tmp_path):
    told = ("--checkpoint", checkpoint, "--patch", "2x2", "--attacks", "none", "--num-images", 2)
    result = call(*told, "--growing", "disc", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run.json").read_text())["growing"] == "disc"
    refused(call(*told, "--growing", "crosses"), "name square, disc or mask:FILE")

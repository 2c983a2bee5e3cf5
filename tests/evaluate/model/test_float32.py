"""PITFALLS 31: a run in less than float32 is held against float32 on its own images, and says how far it is off."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evaluate import attack_vs_cert
from evaluate.model.float32 import off_float32
from evaluate.report.data import read_report
from evaluate.runs.records import read_deviation
from evaluate.sweep import __main__ as sweeping
from robustpatch import InvalidInput, PatchThreat, Threshold
from robustpatch.data.images import ImageSet
from robustpatch.defenses import parse_defense
from tests import lying, toys
from tests.evaluate.small_runs import evaluated


def images(count: int = 6) -> ImageSet:
    x = (toys.images(count) * 255).round().to(torch.uint8)
    return ImageSet("toy", "test", tuple("0123"), (1, *toys.SIZE), torch.arange(count) % 4, _bytes=x)


def run(model: nn.Module, output, **options):
    return evaluated(
        model, output, data=images(), threat=PatchThreat(1, 1), num_images=6, batch_size=2, gallery=8, **options
    )


class Flat(nn.Module):
    """A network of whole images."""

    def __init__(self) -> None:
        super().__init__()
        self.base = toys.linear(1)

    def forward(self, x):
        return self.base(x)


def cleansed(network: nn.Module) -> nn.Module:
    return parse_defense("patchcleanser:patch=1x1").wrap(network, num_classes=4).eval()


MODELS = {
    "smoothed": lambda lie: toys.smoothed(lie(toys.linear())),
    "undefended": lambda lie: lie(Flat()),
    "patchcleanser": lambda lie: cleansed(lie(Flat())),
}
LIES = {
    "the same every time": lying.Wrong,
    "NaN": lambda base: lying.NowAndThen(base, 1),
    "memory that nobody wrote": lying.Unwritten,
}


@pytest.mark.parametrize("kind", list(MODELS))
@pytest.mark.parametrize("lie", list(LIES))
def test_a_lying_kernel_is_refused(kind, lie):
    """In bfloat16; in float32 there is nothing to hold it against, and honest bfloat16 is measured."""
    x = toys.images(3)
    assert off_float32(MODELS[kind](LIES[lie]).eval(), x) is None
    with pytest.raises(InvalidInput, match="wrong kernel or an overflow"):
        off_float32(MODELS[kind](LIES[lie]).eval().bfloat16(), x)
    found = off_float32(MODELS[kind](nn.Sequential).eval().bfloat16(), x)
    assert found is not None
    assert 0 < found < 0.01


def test_a_run_is_refused_at_the_first_batch_that_lies(tmp_path):
    """A kernel that is right for two batches and not for the third: nothing of that one is recorded."""
    base = lying.Wrong(toys.linear(), 0.0)
    model = toys.smoothed(base).bfloat16()

    def spoil(finished: int, what: str) -> None:
        base.error = 6.0 if finished >= 4 else 0.0

    with pytest.raises(InvalidInput, match="wrong kernel or an overflow"):
        run(model, tmp_path, on_progress=spoil)
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_the_distance_is_part_of_the_records(tmp_path):
    """Of a run in bfloat16, also after it was resumed; none of a run in float32."""
    run(toys.smoothed().bfloat16(), tmp_path / "narrow")
    found = read_deviation(tmp_path / "narrow")
    assert found is not None
    assert 0 < found < 0.01
    run(toys.smoothed().bfloat16(), tmp_path / "narrow")
    assert read_deviation(tmp_path / "narrow") == found
    assert f"{found:.1e}" in read_report(tmp_path / "narrow").assumption
    run(toys.smoothed(), tmp_path / "wide")
    assert read_deviation(tmp_path / "wide") is None
    assert "float32" not in read_report(tmp_path / "wide").assumption


def test_beyond_the_guard_it_is_refused():
    model = toys.smoothed(toys.linear(scale=20.0), voting=Threshold(0.3, 1e-4)).bfloat16()
    with pytest.raises(InvalidInput, match=r"guard is 0.0001: compute in float32: network.float\(\); or choose"):
        off_float32(model, toys.images(3))


def test_the_command_reports_it(checkpoint, tmp_path):
    """In the table, summary.json and the report; beyond the guard it is a wrong call."""
    given = ["--checkpoint", str(checkpoint), "--dtype", "bfloat16", "--attacks", "none", "--num-images", "4"]
    done = CliRunner().invoke(attack_vs_cert.app, [*given, "--guard", "0.03", "--output", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "a" / "summary.json").read_text())["float32_deviation"]
    assert 0 < found < 0.03
    assert f", {found:.1e} from float32; " in done.stdout
    assert f"held against float32 on images of each batch (largest deviation: {found:.1e})" in (
        (tmp_path / "a" / "report.md").read_text()
    )
    done = CliRunner().invoke(attack_vs_cert.app, [*given, "--guard", "1e-7", "--output", str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "from float32's of the same images; the guard is 1e-07: compute in float32" in done.stderr


def test_the_sweep_reports_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "draw", lambda *_: [])
    given = [str(checkpoint), "--dtype", "bfloat16", "--num-images", "4", "--batch-size", "2", "--theta", "0.3"]
    done = CliRunner().invoke(sweeping.app, [*given, "--guard", "0.03", "--output", str(tmp_path / "a")])
    assert done.exit_code == 0, done.output
    (found,) = json.loads((tmp_path / "a" / "summary.json").read_text())["float32_deviations"].values()
    assert 0 < found < 0.03
    assert f"- computed in less than float32: scores differ by up to {found:.1e} from float32's" in done.stdout
    done = CliRunner().invoke(sweeping.app, [*given, "--guard", "1e-7", "--output", str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "the guard is 1e-07" in done.stderr

"""`--top-k`: certified top-k accuracy against the same attacks by the same command; a wrong rule ends with status 1."""

from __future__ import annotations

import json

import pytest

from evaluate.runs.completed_run import read_run
from tests.evaluate.calls import call, refused

QUICK = ("--attacks", "pgd:2", "--steps", 3, "--num-images", 4, "--gallery", 0)
MODULE = """
import torch
from robustpatch import Columns, SmoothedClassifier, TopKCertificate

class Rows(torch.nn.Module):
    def forward(self, encoded):  # the mean brightness of each of ten bands of rows that are kept
        return encoded[:, :1, 4:24].mean(dim=3).unflatten(2, (10, 2)).mean(dim=3)[:, 0] * 400

class Careless(SmoothedClassifier):
    def certify_top_k(self, x, y, threat, k):
        found = super().certify_top_k(x, y, threat, k)
        margin = torch.where(found.clean, found.margin.clamp(min=0), found.margin)
        return TopKCertificate(y, k, found.clean, found.clean, margin, threat, found.capacity, found.guard, found.unit)

def honest(): return SmoothedClassifier(Rows(), Columns(4), num_classes=10).eval()
def careless(): return Careless(Rows(), Columns(4), num_classes=10).eval()
"""


def test_a_certified_top_k_is_attacked_and_held(checkpoint, tmp_path):
    """Title, table, verdict, run.json and the report name k; with another k it is another run."""
    result = call("--checkpoint", checkpoint, *QUICK, "--patch", "2x2", "--top-k", 6, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["certified_attacked"] == summary["certified_images"] > 0
    shown = " ".join(result.stdout.split())
    for said in ("patch, top 6", "certified (top 6)", "HELD: no certified label was driven out of the top 6"):
        assert said in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert "patch, top 6" in report["title"]
    assert "top 6" in report["verdict"]
    run = read_run(tmp_path)
    assert run.claim["top_k"] == 6
    assert all(record.certified_exact == (record.margin_exact >= 0) for record in run.records)
    refused(call("--config", tmp_path / "run.toml", "--top-k", 2), "holds another run (other top_k)")


@pytest.mark.parametrize("name", ["honest", "careless"])
def test_a_broken_rule_is_caught_by_the_same_attacks(name, tmp_path, monkeypatch):
    """Status 1, a counterexample, and the same again from its file; the honest one, on the same images, holds."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top_k_of_mine.py").write_text(MODULE)
    given = ("--model", f"top_k_of_mine.py:{name}", *QUICK, "--num-images", 8, "--patch", "10x10", "--top-k", 2)
    result = call(*given, "--output", "out")
    assert result.exit_code == (1 if name == "careless" else 0), result.output
    if name == "honest":
        return
    shown = " ".join(result.stdout.split())
    assert "BROKEN: " in shown
    assert "driven out of the top 2" in shown
    again = call("--model", given[1], "--replay", sorted((tmp_path / "out" / "counterexamples").iterdir())[0])
    assert again.exit_code == 1, again.output
    assert "driven out of the top 2: True the counterexample stands" in " ".join(again.stdout.split())


def test_what_certifies_no_top_k_is_refused(undefended, checkpoint, tmp_path):
    shared = ("--num-images", 2, "--attacks", "none", "--output", tmp_path / "out")
    refused(call("--checkpoint", checkpoint, "--top-k", 0, *shared), "top_k is 0; it must be at least 1")
    for given, said in (
        (("--checkpoint", undefended, "--top-k", 2), "top_k is 2, but a SmallCNN certifies nothing; use top_k 1"),
        (("--checkpoint", checkpoint, "--top-k", 10), "among 10 classes take 1 to 9"),
        (("--checkpoint", checkpoint, "--defense", "patchguard", "--top-k", 2), "certifies its prediction alone"),
    ):
        result = call(*given, *shared)
        assert result.exit_code == 2, result.output
        assert said in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out" / "run.json").exists()

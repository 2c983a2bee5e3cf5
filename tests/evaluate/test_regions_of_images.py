"""Runs against patches in a region of each image's own: recorded, held or broken, and drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from evaluate import Settings, evaluate
from evaluate.report.write import write_report
from evaluate.results.metrics import summarise
from evaluate.results.sentences import verdict
from evaluate.runs.counterexample import load_counterexample, replay
from evaluate.runs.gallery import exhibits_name, read_exhibits
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.storage.store import Store
from robustpatch.threats import Within, parse_threat
from tests.attacks.toys import Level, smoothed
from tests.evaluate import small_runs
from tests.evaluate.planted import image_set
from tests.robustpatch.threats.test_within_each import allowed

THREAT = parse_threat("2x2 in off:0.5, 1x3 in off:0.5")


def scene():
    """Images that are dark on the left, on the right, on one half, and nowhere."""
    x = torch.full((4, 1, 4, 8), 0.7)
    x[0, :, :, :3], x[1, :, :, 5:], x[2, :, :, :4] = 0, 0.2, 0
    x[0, :, 1, 5] = x[1, :, 2, 1] = 1
    return image_set(x, torch.tensor([1, 1, 0, 1]), 3)


class Boastful(SmoothedClassifier):
    """Certifies everything."""

    def certify(self, x, threat, method="exact"):
        found = super().certify(x, threat, method)
        return replace(found, certified=torch.ones_like(found.certified))


def test_recorded_held_and_shown(tmp_path):
    """Each image is attacked on its own dark pixels; the one without any is certified, counted and not missed."""
    model, settings = smoothed(Level(3), Columns(1), 3), Settings(4, 2, 300, 0, gallery=6)
    records = evaluate(model, scene(), THREAT, small_runs.ATTACKS, settings, tmp_path)
    x, _ = scene().batch(range(4))
    certificate = model.certify(x, THREAT)
    assert [record.certified for record in records] == certificate.certified.tolist()
    assert [record.placeless for record in records] == [False, False, False, True]
    for record in records:
        for attack in record.attacks:
            assert attack.contained
            assert (attack.corners == []) == record.placeless
            assert not (record.certified and attack.broken)
        assert record.refuted == (int(certificate.margin[record.index]) < 0)
    summary = summarise(records)
    assert summary.placeless == 1
    assert summary.verdict == "held"
    assert records[3].certified
    assert summary.certified_attacked == summary.certified_images
    store = Store.of(tmp_path)
    shown = 0
    for name in store.names("records", ".parquet"):
        for one in read_exhibits(store.read(exhibits_name(name)), name) if store.exists(exhibits_name(name)) else []:
            pixels = allowed(x[one.index], "off", 0.5)
            reached = {tuple(at) for drawn in one.drawn for at in np.argwhere(drawn > 0).tolist()}
            assert reached <= pixels
            assert bool(reached) == (one.index != 3)
            shown += one.attacked is not None
            margins = [m for own in one.maps for m in own.margins[own.margins < 2**15 - 1].tolist()]
            assert min(margins, default=None) == (None if one.index == 3 else int(certificate.margin[one.index]))
    assert shown
    write_report(tmp_path, tmp_path)
    assert "1x3 in off:0.5" in (tmp_path / "report.md").read_text()
    assert "HELD" in str(verdict(summary))


def test_a_false_certificate_is_broken_within_the_region(tmp_path):
    """The counterexample carries the image's own region, and stands when it is replayed."""
    model = Boastful(Level(3), Columns(1), num_classes=3, voting=smoothed(Level(3), Columns(1), 3).voting).eval()
    records = evaluate(model, scene(), THREAT, small_runs.ATTACKS, Settings(4, 2, 300, 0, gallery=0), tmp_path)
    summary = summarise(records)
    assert summary.verdict == "broken"
    store = Store.of(tmp_path)
    names = store.names("counterexamples", ".safetensors")
    assert names
    for name in names:
        example = load_counterexample(tmp_path / name)
        assert isinstance(example.threat, Within)
        changed = {tuple(at) for at in (example.x_adv != example.x).any(dim=0).nonzero().tolist()}
        assert changed <= allowed(example.x, "off", 0.5)
        outcome, certified = replay(example, model)
        assert certified
        assert outcome.broken[0]

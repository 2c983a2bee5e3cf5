"""checkpoints and images -> rows: what certify says, from one scoring of each image; resume, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from evaluate.results.table import Column
from evaluate.sweep import SweepSettings, columns, read_sweep, sweep
from evaluate.sweep.columns import margin_column, top_column
from robustpatch import precision
from robustpatch.classifiers.base_check import few
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests import toys
from tests.evaluate.sweeps import CLASSES, SIZE, SMALL, make, scene

VOTINGS = (Threshold(0.2), Threshold(0.3), Threshold(0.4), TopOne())
PATCHES = (PatchThreat(2, 2), PatchThreat(1, 3), PatchThreat(1, 1, 2))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {
        "columns": make(folder / "columns.safetensors", seed=7),
        "rows": make(folder / "rows.safetensors", "rows:2", SMALL, seed=1, guard=0.02),
        "blocks": make(folder / "blocks.safetensors", "blocks:3", SMALL, seed=2),
        "grid": make(folder / "grid.safetensors", "1*grid-columns:2", SMALL, seed=3),
    }


ASKED: list = []  # global, since a class that holds what it was asked is another after each question
SCORES = SmoothedClassifier.scores


def noted(self, x, index=None):
    """The scores; of which images and ablations, None for all, is kept in ASKED."""
    ASKED.append((str(self.ablation), len(x), None if index is None else index.shape[-1]))
    return SCORES(self, x, index)


def run(checkpoints, output, images=None, **options):
    images = images or scene()
    settings = {"votings": VOTINGS, "patches": PATCHES, "num_images": len(images), "batch_size": 3}
    on_progress = options.pop("on_progress", lambda *_: None)
    return sweep(checkpoints, images, SweepSettings(**settings | options), output, on_progress=on_progress)


def rows_of(output):
    return pq.read_table(output / "records").sort_by(
        [(name, "ascending") for name in ("checkpoint", "voting", "index")]
    )


@pytest.fixture(scope="module")
def swept(checkpoints, tmp_path_factory):
    """A sweep of thirteen images, of top k too; for each checkpoint and rule its rows, and a classifier of it."""
    found, rules = run(checkpoints, tmp_path_factory.mktemp("swept"), scene(13), top_k=(1, 2)), []
    for name, checkpoint in checkpoints.items():
        model = checkpoint.smoothed
        for voting in VOTINGS:
            rule = voting.with_guard(model.guard)
            alone = SmoothedClassifier(model.base, model.ablation, num_classes=CLASSES, voting=rule).eval()
            rules.append((name, found.columns[name, str(voting)], alone))
    return found, rules


def test_the_rows_are_what_certify_says(checkpoints, swept):
    """For each checkpoint, rule, patch and method, image by image: prediction, margin, largest square, close votes."""
    x, y = scene(13).batch(range(13))
    varied = set()
    for name, rows, alone in swept[1]:
        assert rows["label"].tolist() == y.tolist()
        assert rows["largest_certified"].tolist() == alone.largest_certified(x).tolist()
        for method in ("exact", "margin"):
            sides = [alone.certify(x, PatchThreat(m, m), method).certified for m in range(1, 7)]
            side = rows["largest_certified" + "_margin" * (method == "margin")]
            assert side.tolist() == torch.stack(sides).sum(dim=0).tolist()
            for patch in PATCHES:
                certificate = alone.certify(x, patch, method)
                assert rows[margin_column(method, patch)].tolist() == certificate.margin.tolist()
                assert rows["prediction"].tolist() == certificate.prediction.tolist()
                assert rows["close_votes"].tolist() == certificate.close.tolist()
        sides, margins = rows["largest_certified"], rows[margin_column("exact", PATCHES[0])]
        varied |= {(name, int(side), int(margin)) for side, margin in zip(sides, margins, strict=True)}
    assert {(name, side > 0) for name, side, _ in varied} == {(name, some) for name in checkpoints for some in (0, 1)}
    assert len(varied) > 20
    of_columns, rows = ([rows for own, rows, _ in swept[1] if own == name] for name in ("columns", "rows"))
    assert sum(some["close_votes"].sum() for some in rows) > 0
    assert any((some["largest_certified"] > some["largest_certified_margin"]).any() for some in of_columns)


def test_the_rows_of_top_k_are_what_certify_top_k_says(swept, checkpoints, tmp_path):
    """For each checkpoint, rule, patch and k, image by image, with the rule's own capacity; k = 1 is the exact
    certificate of the images classified correctly. Only where it is asked for.
    """
    assert swept[0].configuration["top_k"] == [1, 2]
    x, y = scene(13).batch(range(13))
    decided = set()
    for _, rows, alone in swept[1]:
        correct = rows["prediction"] == rows["label"]
        assert ((rows["rank"] == 0) == correct).all()
        for patch in PATCHES:
            for k in (1, 2):
                own = alone.certify_top_k(x, y, patch, k)
                assert rows[top_column(k, patch)].tolist() == own.margin.tolist()
                assert (rows["rank"] < k).tolist() == own.clean.tolist()
                decided |= {(k, *pair) for pair in zip(own.clean.tolist(), own.certified.tolist(), strict=True)}
            exact = correct & (rows[margin_column("exact", patch)] >= 0)
            assert (exact == (rows[top_column(1, patch)] >= 0)).all()
    assert decided == {(k, *pair) for k in (1, 2) for pair in ((False, False), (True, False), (True, True))}
    plain = run({"columns": checkpoints["columns"]}, tmp_path, scene(13))
    assert "top_k" not in plain.configuration
    for key, rows in plain.columns.items():
        assert all((swept[0].columns[key][name] == column).all() for name, column in rows.items())
        assert not {"rank", top_column(1, PATCHES[0])} & set(rows)


def test_every_image_is_scored_once(checkpoints, tmp_path, monkeypatch):
    """For all rules, patches, sides and k together; once the base has been tested, one call for each batch, and one of
    a few ablations of one image, which goes on testing it.
    """
    monkeypatch.setattr(SmoothedClassifier, "scores", noted)
    run(checkpoints, tmp_path / "tested")
    ASKED.clear()
    run(checkpoints, tmp_path / "counted", top_k=(1, 2))
    asked = []
    for one in checkpoints.values():
        ablation, fills = one.smoothed.ablation, 3 if one.smoothed.one_pass else 1  # beyond what it may see
        again = (str(ablation), fills, few(ablation.count(*SIZE)))
        asked += [call for size in (3, 3, 1) for call in ((str(ablation), size, None), again)]
    assert asked == ASKED


def test_a_base_that_breaks_the_assumptions_is_refused(checkpoints, tmp_path):
    """The tests of `certify` are made in a sweep too: nothing is written."""
    model = toys.smoothed(toys.seeded(toys.Coupled), classes=toys.CLASSES)
    images = replace(scene(), class_names=("a", "b", "c", "d"))
    with pytest.raises(InvalidInput, match="mend the base"):
        run({"coupled": replace(checkpoints["columns"], model=model)}, tmp_path, images)
    assert not list(tmp_path.glob("records/**/*.parquet"))


def test_one_entry_adds_a_column(checkpoints, tmp_path, monkeypatch):
    """It is computed, in the shards' schema, and read again."""
    more = Column[columns.RuledBatch](field="most", kind=int, value=lambda batch: batch.votes.counts.amax(dim=1))
    monkeypatch.setattr(columns, "KEYS", (*columns.KEYS, more))
    rows = run({"columns": checkpoints["columns"]}, tmp_path).columns["columns", "top1"]
    model, (x, _) = checkpoints["columns"].smoothed, scene().batch(range(7))
    votes = TopOne().votes(model.certifiable_scores(x), model.guard)
    assert rows["most"].tolist() == votes.counts.amax(dim=1).tolist()


def test_an_interrupted_sweep_resumes(checkpoints, tmp_path):
    """Stopped in the second checkpoint, then started again: finished shards untouched, rows of an undisturbed run."""

    def stop(finished, _):
        if finished == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoints, tmp_path / "stopped", on_progress=stop)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stopped/records/*/*.parquet")}
    assert len(done) == 4
    with pytest.raises(InvalidInput, match=r"has 3 of 7 images of rows, threshold:0\.2; repeat its command"):
        read_sweep(tmp_path / "stopped")
    again = run(checkpoints, tmp_path / "stopped")
    whole = run(checkpoints, tmp_path / "whole")
    assert rows_of(tmp_path / "stopped").equals(rows_of(tmp_path / "whole"))
    assert len(rows_of(tmp_path / "whole")) == 4 * 4 * 7
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert again.configuration == whole.configuration
    assert all(again.seconds[name][part] > 0 for name in checkpoints for part in ("scoring", "certifying"))


def test_the_guard_noted_is_the_one_that_certifies(checkpoints, tmp_path, monkeypatch):
    """A device that computes in TF32 has a larger guard than the processor that the weights are loaded on."""
    used, certify, on = [], columns.certify_votes, ["cpu"]

    def to(self, device):
        on[0] = device
        return self

    monkeypatch.setattr(SmoothedClassifier, "to", to)
    monkeypatch.setattr(precision, "is_reduced", lambda tensors, kind: on[0] != "cpu")
    monkeypatch.setattr(columns, "certify_votes", lambda *a, **o: used.append(o["guard"]) or certify(*a, **o))
    for device, guard in (("cpu", 1e-4), ("cpu:0", 1e-2)):
        used.clear()
        found = run({"columns": checkpoints["columns"]}, tmp_path / device, device=device)
        assert [checkpoint["guard"] for checkpoint in found.configuration["checkpoints"]] == [guard]
        assert set(used) == {guard}


def test_another_sweep_in_the_same_folder_is_refused(checkpoints, tmp_path):
    """Other rules, patches, batches or images; and the same names with other weights."""
    one = {"columns": checkpoints["columns"]}
    run(one, tmp_path)
    changes = ({"votings": VOTINGS[:2]}, {"patches": PATCHES[:1]}, {"batch_size": 4}, {"num_images": 5})
    for change in (*changes, {"top_k": (1,)}):
        with pytest.raises(InvalidInput, match=f"other {next(iter(change))}"):
            run(one, tmp_path, **change)
    with pytest.raises(InvalidInput, match="other checkpoints"):
        run({"columns": replace(checkpoints["columns"], sha256="other")}, tmp_path)
    with pytest.raises(InvalidInput, match="other images_sha256"):
        run(one, tmp_path, replace(scene(), labels=torch.zeros(7, dtype=torch.long)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patches": ()}, "patches is empty"),
        ({"patches": (PatchThreat(1, 1),) * 2}, "patches is 1x1, 1x1: one of them twice"),
    ],
)
def test_settings_that_make_no_sweep(checkpoints, tmp_path, change, message):
    """Refused before anything is written; `test_sweep_command.WRONG` has those that a command line can say."""
    with pytest.raises(InvalidInput, match=message):
        run(checkpoints, tmp_path / "new", **change)
    assert not (tmp_path / "new").exists()


def test_folders_that_hold_no_sweep(tmp_path):
    """Nothing there, another kind of run; `test_sealed_runs` damages shards."""
    with pytest.raises(InvalidInput, match="holds no sweep"):
        read_sweep(tmp_path)
    (tmp_path / "run.json").write_text('{"attacks": []}')
    with pytest.raises(InvalidInput, match="holds no sweep"):
        read_sweep(tmp_path)

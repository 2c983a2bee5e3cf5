"""images -> records: what is attacked and how, resume, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from attacks import Control, Ensemble, ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate, summarise
from evaluate.runs import runner as module
from evaluate.runs.records import read_records, read_shard, shard_name, write_shard
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.base_check import few
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet, load_images
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, images, smoothed, strip
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import timeless

THREAT = PatchThreat(2, 2)
ATTACKS = (PatchPGD(steps=2, restarts=2), ExhaustivePGD(steps=1, rounds=0))
SIZE = (4, 10)


ASKED: list = []  # global, since a class that holds what it was asked is another after each question
LOGITS = SmoothedClassifier.logits


def noted(self, x, index=None):
    """The logits; how many images were scored, and how many of the ablations, None for all, is kept in ASKED."""
    ASKED.append((len(x), None if index is None else index.shape[-1]))
    return LOGITS(self, x, index)


def scene(number=10):
    """Black, grey and white images with any labels: certified and not, classified rightly and wrongly."""
    x = images(number, SIZE)
    x[0::3], x[1::3, :, :, 4:8] = 0, 0
    return image_set(x, torch.arange(number) % 2 * 2, 3)


def classifier():
    return smoothed(Level(3), Columns(1), 3)


def run(output, model=None, data=None, threat=THREAT, attacks=ATTACKS, **settings):
    data = data or scene()
    settings = Settings(**{"num_images": len(data), "batch_size": 4, "certified_budget": 500, **settings})
    return evaluate(model or classifier(), data, threat, attacks, settings, output)


def test_the_right_images_are_attacked(tmp_path):
    """Certified images without pruning, for a right or a wrong label; the rest if classified correctly."""
    records = run(tmp_path)
    kinds = {(r.certified, r.correct) for r in records}
    assert {(True, True), (True, False), (False, True), (False, False)} <= kinds
    for r in records:
        assert [a.attack for a in r.attacks] == (["pgd-2", "exhaustive"] if r.certified or r.correct else [])
        assert all(a.unpruned == r.certified for a in r.attacks)
        assert all(a.threat == "2x2" and a.contained and a.in_range for a in r.attacks)
        assert all(a.prediction != r.prediction for a in r.attacks if a.broken)
    assert [r.index for r in records] == list(range(10))
    assert [r.label for r in records] == [i % 2 * 2 for i in range(10)]
    assert summarise(records).verdict == "held"


def test_records_agree_with_the_classifier(tmp_path):
    """Predictions, margins, the largest patch and the votes are those of the model, image by image."""
    model, data = classifier(), scene()
    records = run(tmp_path, model, data)
    x, _ = data.batch(range(len(data)))
    exact, paper = model.certify(x, THREAT), model.certify(x, THREAT, "margin")
    assert [r.prediction for r in records] == model.predict(x).tolist()
    assert [r.margin_exact for r in records] == exact.margin.tolist()
    assert [r.margin_margin for r in records] == paper.margin.tolist()
    assert [r.certified_exact for r in records] == exact.certified.tolist()
    assert [r.certified_margin for r in records] == paper.certified.tolist()
    assert [r.largest_certified for r in records] == model.largest_certified(x).tolist()
    assert all(r.votes == 30 and r.consistent for r in records)


def test_certified_images_are_scored_whole(tmp_path, monkeypatch):
    """On certified images no attack asks for some ablations only, every placement is visited, and the account says N.
    `certify` itself asks a few, of one image, to test the base.
    """
    monkeypatch.setattr(SmoothedClassifier, "logits", noted)
    data = image_set(torch.zeros(3, 1, *SIZE), torch.tensor([0, 1, 0]), 3)
    model = classifier()
    run(tmp_path / "checked", model, data, certified_budget=None)  # the model is tested once, in parts too
    ASKED.clear()
    records = run(tmp_path / "counted", model, data, certified_budget=None)
    assert (3, None) in ASKED
    assert {call for call in ASKED if call[1] is not None} == {(1, few(10))}
    for r in records:
        assert r.certified
        pgd, exhaustive = r.attacks
        assert (pgd.evaluations, exhaustive.evaluations) == (10 + 10 * 2 * 5, 10 + 10 * 27 * 3)
        assert exhaustive.visited == 1
    summary = summarise(records)
    assert summary.certified_evaluations == 3 * (110 + 820)
    assert (summary.certified_attacked, summary.verdict) == (3, "held")


@pytest.mark.parametrize("attacks", [ATTACKS, (Ensemble(ATTACKS, "both"),)])
def test_a_budget_spent_on_the_clean_image_holds_nothing(attacks, tmp_path):
    """A budget below the ablations of one image lets no attack begin: such certificates are not tested."""
    for budget, verdict in ((9, "not tested"), (31, "held")):
        records = run(tmp_path / str(budget), attacks=attacks, certified_budget=budget)
        assert any(r.certified for r in records)
        assert summarise(records).verdict == verdict


def test_without_attacks_nothing_is_held(tmp_path):
    """Certificates that nobody attacked are "not tested"."""
    summary = summarise(run(tmp_path, attacks=()))
    assert summary.verdict == "not tested"
    assert summary.certified_attacked == 0 < summary.certified_images


@pytest.mark.parametrize("threat", [PatchThreat(1, 1, 2), AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)])], ids=str)
@pytest.mark.parametrize("model", [classifier, lambda: strip(SIZE)])
def test_other_threats_run(threat, model, tmp_path):
    """Two patches and either of two shapes: each member is attacked, and the certificates hold."""
    records = run(tmp_path, model(), threat=threat, attacks=ATTACKS[:1])
    for r in records:
        assert [a.threat for a in r.attacks] in ([], [str(one) for one in threat.threats])
        assert all(len(a.corners) == 2 * threat.threats[0].count for a in r.attacks)
    assert summarise(records).verdict == "held"


def test_records_do_not_depend_on_what_was_done_before(tmp_path):
    """Two runs of the same call give the same records, times apart, and so does one that lost a shard."""
    first = run(tmp_path / "a")
    assert timeless(first) == timeless(run(tmp_path / "b"))
    (tmp_path / "b" / shard_name(4, 8)).unlink()
    assert timeless(first) == timeless(run(tmp_path / "b"))
    assert timeless(first) != timeless(run(tmp_path / "c", seed=1))


def test_finished_shards_are_not_done_again(tmp_path, monkeypatch):
    """A run started again does what is missing and no more."""
    before = run(tmp_path)
    done, original = [], module.evaluate_batch

    def batch(model, x, y, first, *rest, **options):
        done.append(first)
        return original(model, x, y, first, *rest, **options)

    monkeypatch.setattr(module, "evaluate_batch", batch)
    assert run(tmp_path) == before
    assert done == []
    (tmp_path / shard_name(4, 8)).unlink()
    assert timeless(run(tmp_path)) == timeless(before)
    assert done == [4]


def reweighted():
    model = strip(SIZE)
    with torch.no_grad():
        model.base.embedding[0, 0, 0] += 1
    return model


@pytest.fixture(scope="module")
def of_strip(tmp_path_factory):
    """A finished run of a network with weights, which no test may change."""
    output = tmp_path_factory.mktemp("strip")
    run(output, strip(SIZE))
    return output


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"num_images": 5},
        {"batch_size": 3},
        {"certified_budget": 7},
        {"threat": PatchThreat(2, 1)},
        {"attacks": ATTACKS[:1]},
        {"attacks": (replace(ATTACKS[0], steps=3), ATTACKS[1])},
        {"model": smoothed(Level(3), Columns(2), 3)},
        {"model": reweighted()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_run_in_the_same_folder_is_refused(change, of_strip):
    """Records are never taken for those of another configuration or model, be it by one weight."""
    before = [file.read_bytes() for file in sorted((of_strip / "records").iterdir())]
    with pytest.raises(InvalidInput, match=r"holds another run \(other .+\); name another output") as refusal:
        run(of_strip, **{"model": strip(SIZE), **change})
    assert ("model_sha256" in str(refusal.value)) == ("model" in change)
    assert before == [file.read_bytes() for file in sorted((of_strip / "records").iterdir())]


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_other_images_in_the_middle_are_another_run(kind, tmp_path):
    """Labels, the first image and the last are not enough to know a data set by: what was done is of other images."""

    def data(shade: int) -> ImageSet:
        if kind == "memory":
            return image_set(torch.tensor([0, shade, 0])[:, None, None, None].expand(-1, 1, *SIZE) / 255, zeros, 3)
        for i, level in enumerate((0, shade, 0)):
            place = tmp_path / "data" / "test" / "cat"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("L", SIZE[::-1], level).save(place / f"{i}.png")
        names = ("cat", "dog", "eel")
        return load_images("folder", tmp_path / "data", image_size=SIZE, channels=1, class_names=names)

    zeros = torch.zeros(3, dtype=torch.long)
    assert [r.certified for r in run(tmp_path / "out", data=data(0))] == [True] * 3
    run(tmp_path / "out", data=data(0))
    with pytest.raises(InvalidInput, match="other images_sha256"):
        run(tmp_path / "out", data=data(120))


def test_records_survive_parquet(tmp_path):
    """What is written is read again, None and empty lists included; half-written files are not seen."""
    records = run(tmp_path / "run")
    nothing = dict.fromkeys(("margin_exact", "certified_margin", "margin_margin", "largest_certified"))
    odd = replace(records[0], attacks=[], **nothing)
    name = shard_name(0, 10)
    write_shard(tmp_path / "again", name, [odd, *records[1:]])
    assert read_shard(tmp_path / "again", name) == [odd, *records[1:]]
    (tmp_path / "again" / "records" / "00000010-00000020.parquet.1.part").write_bytes(b"PAR1")
    assert read_records(tmp_path / "again") == [odd, *records[1:]]
    assert not list((tmp_path / "run" / "records").glob("*.part*"))


class Bytes(ImageSet):
    """An image set that forgets to divide by 255."""

    def batch(self, index):
        x, y = super().batch(index)
        return x * 255, y


def test_bad_calls_of_the_library(tmp_path):
    """Images in 0..255, patches larger than the image, and impossible settings name value and remedy."""
    data = scene()
    fields = {name: getattr(data, name) for name in ("name", "split", "class_names", "image_shape", "labels", "_bytes")}
    with pytest.raises(InvalidInput, match=r"images range from 0 to .*divide by 255"):
        run(tmp_path / "bytes", data=Bytes(**fields))
    with pytest.raises(InvalidInput, match=r"patch 5x2 .* is larger than the image, 4x10"):
        run(tmp_path / "large", threat=PatchThreat(5, 2))
    for name in ("num_images", "batch_size"):
        with pytest.raises(InvalidInput, match=f"{name} is 0"):
            Settings(**{"num_images": 5, name: 0})


def test_controls_are_known_by_their_names(tmp_path):
    """An attack of a control's name, and controls alone under another, are refused before they are miscounted."""
    x, grey = image_set(torch.zeros(1, 1, 4, 8), torch.zeros(1, dtype=torch.long), 2), Control(content="grey", tries=2)
    alone = Ensemble((grey, Ensemble((grey,), "inner")), "mine")
    for attack, message in (
        (Ensemble((grey, PatchPGD()), "grey"), "named grey, as a control is, .*rename"),
        (alone, "mine holds controls alone, .*by their own names"),
    ):
        with pytest.raises(InvalidInput, match=message):
            evaluate(smoothed(Level(), Columns(1), 2), x, PatchThreat(1, 1), [attack], Settings(1), tmp_path)
    assert not list(tmp_path.iterdir())
    for number, attack in enumerate((grey, replace(alone, label="grey"), Ensemble((grey, PatchPGD(steps=1)), "mine"))):
        output = tmp_path / str(number)
        (record,) = evaluate(smoothed(Level(), Columns(1), 2), x, PatchThreat(1, 1), [attack], Settings(1), output)
        assert record.certified
        assert record.threats_tested == ({"1x1"} if number == 2 else set())

"""Workers that do not do what they are given: no run of theirs ends in a verdict."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate, summarise
from evaluate.runs.batch import evaluate_batch
from evaluate.runs.completed_run import IncompleteRun, check_complete
from evaluate.runs.records import read_records, read_shard, shard_name, write_shard
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, smoothed
from tests.evaluate.planted import image_set
from tests.evaluate.small_runs import timeless

THREAT = AnyOf([PatchThreat(1, 1), PatchThreat(2, 1)])
ATTACKS = (PatchPGD(steps=1, restarts=1),)
NUMBER = 6


def run(output, workers=None):
    x = torch.linspace(0, 1, NUMBER)[:, None, None, None].expand(-1, 1, 2, 9)
    images = image_set(x, torch.zeros(NUMBER, dtype=torch.long), 2)
    model = smoothed(Level(2), Columns(1), 2)
    return evaluate(model, images, THREAT, ATTACKS, Settings(NUMBER, 2, gallery=0), output, workers=workers)


def honest(job, images, missing, on_progress):
    for batch in missing:
        job.do(*images.batch(batch), batch.start)


def changed(change):
    """Workers that do all batches, and then write another shard for the second."""

    def work(job, images, missing, on_progress):
        honest(job, images, missing, on_progress)
        name = shard_name(2, 4)
        write_shard(job.store, name, change(read_shard(job.store, name, job.run)), job.run)

    return work


def without_attacks(records):
    return [replace(record, attacks=[]) for record in records]


def truncated(job, images, missing, on_progress):
    honest(job, images, missing, on_progress)
    content = job.store.read(shard_name(2, 4))
    job.store.write(shard_name(2, 4), content[: len(content) // 2])


def elsewhere(job, images, missing, on_progress):
    """The same images under another name."""
    honest(job, images, missing, on_progress)
    write_shard(job.store, shard_name(3, 5), read_records(job.store)[3:5], job.run)


def half_of_each(job, images, missing, on_progress):
    for batch in missing:
        job.do(*images.batch(batch[:1]), batch.start)


def of_other_images(job, images, missing, on_progress):
    for batch in missing:
        job.do(*images.batch(missing[0]), batch.start + 100)


HOSTILE = {
    "nothing": (lambda *_: None, "3 of 3 batches are not done"),
    "all but the last": (lambda job, images, missing, p: honest(job, images, missing[:-1], p), "1 of 3 batches"),
    "one record twice": (changed(lambda records: [records[0], records[0]]), "1 of 3 batches"),
    "in another order": (changed(lambda records: records[::-1]), "1 of 3 batches"),
    "of another index": (changed(lambda r: [replace(one, index=one.index + 2) for one in r]), "1 of 3 batches"),
    "without attacks": (changed(without_attacks), "image 2 has 0 of 2 attacks"),
    "one attack less": (changed(lambda r: [replace(one, attacks=one.attacks[:1]) for one in r]), "1 of 2 attacks"),
    "one attack twice": (changed(lambda r: [replace(one, attacks=one.attacks[:1] * 2) for one in r]), "2 of 2 attacks"),
    "a foreign attack": (
        changed(lambda r: [replace(o, attacks=[replace(a, attack="x") for a in o.attacks]) for o in r]),
        "image 2 has 2 of 2 attacks",
    ),
    "pruned": (
        changed(lambda r: [replace(o, attacks=[replace(a, unpruned=not a.unpruned) for a in o.attacks]) for o in r]),
        "says of an attack that it was",
    ),
    "truncated": (truncated, "1 of 3 batches"),
    "two shards": (elsewhere, "which is not of this run"),
    "half of each": (half_of_each, "which is not of this run"),
    "other images": (of_other_images, "which is not of this run"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_workers_that_skip_or_change(kind, tmp_path):
    """An error names what is not there; honest workers finish the run afterwards, where nothing foreign is in it."""
    work, message = HOSTILE[kind]
    with pytest.raises((IncompleteRun, InvalidInput), match=message):
        run(tmp_path, work)
    if "batches" in message:
        assert len(run(tmp_path, honest)) == NUMBER


def test_workers_may_choose_the_order_and_repeat(tmp_path):
    """What counts is what is there in the end."""
    records = run(tmp_path / "a")

    def odd(job, images, missing, on_progress):
        honest(job, images, [*missing[::-1], *missing[:2]], on_progress)

    assert timeless(run(tmp_path / "b", odd)) == timeless(records)
    assert summarise(records).verdict == "held"


def test_records_are_counted_against_what_was_asked(tmp_path):
    records = run(tmp_path)
    check_complete(records, NUMBER, ATTACKS, THREAT)
    for some, total, message in (
        (records[:-1], NUMBER, "no record of image 5"),
        (records + records[:1], NUMBER, "two records of image 0"),
        (records, NUMBER - 1, "a record of image 5"),
        ([], NUMBER, "no record of images 0, 1, 2, 3, 4, 5"),
    ):
        with pytest.raises(IncompleteRun, match=message):
            check_complete(some, total, ATTACKS, THREAT)
    with pytest.raises(IncompleteRun, match="of 4 attacks"):
        check_complete(records, NUMBER, (*ATTACKS, ExhaustivePGD(steps=1, rounds=0)), THREAT)


def test_the_batch_itself_gives_whole_records():
    """What `check_complete` asks for is what `evaluate_batch` does."""
    x = torch.linspace(0, 1, NUMBER)[:, None, None, None].expand(-1, 1, 2, 9).contiguous()
    settings = Settings(NUMBER, gallery=0)
    batch = evaluate_batch(smoothed(Level(2), Columns(1), 2), x, torch.arange(NUMBER) % 2, 0, THREAT, ATTACKS, settings)
    check_complete(batch.records, NUMBER, ATTACKS, THREAT)

"""Whatever a run writes is told from damage and from what other runs wrote: named, made again, or refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from attacks import PatchPGD
from evaluate import Settings, evaluate
from evaluate.report import write_report
from evaluate.runs.records import open_shard, read_shard, shard_name
from evaluate.runs.run_identity import run_of
from evaluate.runs.sealed_table import DamagedShard, write_table
from evaluate.sweep import SweepSettings, read_sweep, sweep
from evaluate.sweep.records import sweep_shard
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.attacks.toys import Level, smoothed
from tests.evaluate import small_runs
from tests.evaluate.small_runs import BATCH, NUMBER, scene, timeless
from tests.evaluate.sweeps import make
from tests.evaluate.sweeps import scene as sweep_scene

SHARD = shard_name(0, BATCH)


run = partial(small_runs.run, attacks=(), gallery=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, and its records."""
    output = tmp_path_factory.mktemp("whole")
    return output, timeless(run(output))


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(whole[0], tmp_path / "run")


def times(output: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-30] + bytes([content[-30] ^ 1]) + content[-29:])


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(("spoil", "reason"), [(flip, "is not as it was written"), (gone, "is missing")])
def test_a_damaged_exhibit_is_named_and_made_again(whole, copied, spoil, reason):
    """With its batch and no other; a report says which it is and what to do, and is then written."""
    exhibit = next(iter(sorted((copied / "exhibits").iterdir())))
    content = exhibit.read_bytes()
    spoil(exhibit)
    with pytest.raises(
        InvalidInput, match=rf"exhibits/{exhibit.name}, which belongs to it, {reason}.*repeat the run's"
    ):
        write_report(copied)
    told: list = []
    again = run(copied, on_damaged=lambda *what: told.append(what))
    assert timeless(again) == whole[1]
    assert [(name, reason in why) for name, why in told] == [(SHARD, True)]
    assert exhibit.read_bytes() == content
    write_report(copied)


def test_files_are_sealed_with_their_table(tmp_path):
    """Of whatever kind: a counterexample is no other than an exhibit."""
    store = Store(tmp_path)
    store.write("counterexamples/a", b"a")
    run(tmp_path)
    own = run_of(tmp_path)
    write_table(store, SHARD, open_shard(store, SHARD).table, own, ["counterexamples/a"])
    assert len(read_shard(store, SHARD, own, whole=True)) == BATCH
    store.write("counterexamples/a", b"b")
    assert len(read_shard(store, SHARD, own)) == BATCH
    with pytest.raises(DamagedShard, match="counterexamples/a, which belongs to it, is not as it was written"):
        read_shard(store, SHARD, own, whole=True)


def test_a_run_json_that_cannot_be_read(copied):
    """The error says how to recover, and that keeps every record."""
    before, claim = times(copied / "records"), (copied / "run.json").read_bytes()
    for content in (b"", b"{", b"[]", b"\xff\xfe", b"null"):
        (copied / "run.json").write_bytes(content)
        with pytest.raises(InvalidInput, match=r"run\.json that cannot be read; delete that file and repeat the com"):
            run(copied)
        assert (copied / "run.json").read_bytes() == content
    (copied / "run.json").unlink()
    run(copied)
    assert times(copied / "records") == before
    assert (copied / "run.json").read_bytes() == claim


def test_what_another_run_left_is_not_claimed(copied):
    """Without its run.json its records are still its own: nothing is written over them."""
    (copied / "run.json").unlink()
    before = times(copied)
    with pytest.raises(InvalidInput, match=rf"has no run\.json, but {SHARD} of another run; name another output"):
        run(copied, seed=1)
    assert times(copied) == before


class Refusing(PatchPGD):
    """Refuses its work once it has begun."""

    def __call__(self, *_, **__):
        raise InvalidInput("none of these")

    def unpruned(self, budget):
        return self


def test_a_refused_run_claims_nothing(tmp_path):
    """Another may then have the output; the refused one leaves no file, and no folder that was not there."""
    output = tmp_path / "a" / "run"
    model = smoothed(Level(3), Columns(1), 3)
    with pytest.raises(InvalidInput, match="none of these"):
        evaluate(model, scene(), PatchThreat(2, 2), (Refusing(),), Settings(NUMBER, NUMBER, gallery=0), output)
    assert not list(tmp_path.iterdir())
    assert len(run(output)) == NUMBER


VOTINGS, PATCHES = (Threshold(0.3),), (PatchThreat(2, 2),)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return {"one": make(folder / "one.safetensors", seed=7), "two": make(folder / "two.safetensors", seed=8)}


def swept(checkpoint, output, **options):
    settings = SweepSettings(VOTINGS, PATCHES, 7, batch_size=4)
    return sweep({"net": checkpoint}, sweep_scene(), settings, output, **options)


def rows(found) -> list:
    return [{name: column.tolist() for name, column in columns.items()} for columns in found.columns.values()]


def test_a_damaged_shard_of_a_sweep_is_named_and_made_again(checkpoints, tmp_path):
    """Cut off; or another sweep's, of the right name, columns, images and checksum: it is believed by nobody."""
    expected = rows(swept(checkpoints["one"], tmp_path / "one"))
    swept(checkpoints["two"], tmp_path / "two")
    shard, other = (tmp_path / folder / sweep_shard("net", 0, 4) for folder in ("one", "two"))
    for content, reason in (
        (shard.read_bytes()[:40], "its checksum is wrong or missing"),
        (other.read_bytes(), "it is of another run"),
    ):
        shard.write_bytes(content)
        with pytest.raises(InvalidInput, match=rf"is damaged \({reason}\); repeat the run's command"):
            read_sweep(tmp_path / "one")
        told: list = []
        again = swept(checkpoints["one"], tmp_path / "one", on_progress=lambda _, what, told=told: told.append(what))
        assert told == [f"net (once more: its shard is damaged, {reason})", "done"]
        assert rows(again) == expected


def test_a_sweep_without_its_run_json(checkpoints, tmp_path):
    """The same sweep goes on; another is refused before it writes."""
    swept(checkpoints["one"], tmp_path)
    (tmp_path / "run.json").unlink()
    before = times(tmp_path)
    with pytest.raises(InvalidInput, match=r"has no run\.json, but records/net/.* of another run"):
        swept(checkpoints["two"], tmp_path)
    assert times(tmp_path) == before
    swept(checkpoints["one"], tmp_path)
    assert times(tmp_path / "records").items() <= before.items()


def test_a_sweep_goes_where_fsspec_goes(checkpoints, tmp_path):
    """With the rows of one in a folder."""
    found = swept(checkpoints["one"], "memory://sealed/sweep")
    assert rows(found) == rows(swept(checkpoints["one"], tmp_path))
    assert json.loads(Store("memory://sealed/sweep").read("run.json")) == found.configuration

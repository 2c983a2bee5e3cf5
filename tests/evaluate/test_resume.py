"""Runs that are killed, find the disk full or read-only, or their shards damaged: no result is lost or wrong."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.runs import runner as module
from evaluate.runs.records import open_shard, read_records, read_shard, shard_name, write_shard
from evaluate.runs.run_identity import run_of
from evaluate.runs.sealed_table import DamagedShard, write_table
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from tests.evaluate.calls import call, refused
from tests.evaluate.small_runs import BATCH, NUMBER, contents, found, process, run, timeless

SHARDS = [shard_name(first, first + BATCH) for first in range(0, NUMBER, BATCH)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole")
    run(output)
    return output


@pytest.fixture(scope="module")
def undisturbed(whole):
    """Its records."""
    return found(whole)


def done_before(output, number: int) -> dict[str, bytes]:
    """A run that was interrupted after so many batches: its shards."""

    def stop(finished, _):
        if finished >= number * BATCH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(output, on_progress=stop)
    assert len(contents(output)) == number
    return contents(output)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_of_any_write(every, undisturbed, tmp_path):
    """SIGKILL before each file operation and in the middle of each write, until the run gets through: what is there is
    whole, and resuming gives the records of the undisturbed run."""
    for fatal in range(1, 100, every):
        output = tmp_path / str(fatal)
        child = process(output, fatal)
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        if hasattr(os, "O_TMPFILE"):  # then nothing half written has a name, but what shows whether one can be written
            assert all(b"to see whether" in path.read_bytes() for path in output.rglob(".*"))
        before = contents(output)
        assert all(read_shard(output, f"records/{name}", run_of(output)) for name in before)
        assert timeless(run(output)) == undisturbed
        assert {name: content for name, content in contents(output).items() if name in before} == before
    assert fatal > 4 * len(SHARDS)
    assert found(output) == undisturbed


def test_two_processes_in_one_folder(undisturbed, tmp_path):
    """Share the work or do it twice: the records are the same, and neither fails."""
    children = [process(tmp_path) for _ in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert found(tmp_path) == undisturbed


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own, with a little more room than a run asks for, and a function that lets nobody write there
    any more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk for a test")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_gets_full(disk, undisturbed):
    """One line says so; the shards that are finished stay, no part of another does, and room is all that is needed."""
    folder, _ = disk
    filler = folder / "others.bin"

    def fill(*_):
        """Others leave room for a shard or two, once the run has begun."""
        if not filler.exists():
            filler.write_bytes(b"0" * (shutil.disk_usage(folder).free - 20 * 1024))

    with pytest.raises(InvalidInput, match=r"records/.* cannot be written .*No space left.*make room or name another"):
        run(folder, on_progress=fill)
    before = contents(folder)
    assert 0 < len(before) < len(SHARDS)
    assert {path.name for path in (folder / "records").iterdir()} == set(before)
    filler.unlink()
    assert timeless(run(folder)) == undisturbed
    assert all(contents(folder)[name] == content for name, content in before.items())


def test_a_disk_that_became_read_only(disk, undisturbed):
    """Is found before the first image is certified; what was finished can be read."""
    folder, seal = disk
    before = done_before(folder, 1)
    seal()
    told = []
    with pytest.raises(InvalidInput, match=r"output is .* cannot be written .*Read-only file system"):
        run(folder, on_progress=lambda *what: told.append(what))
    assert told == []
    assert contents(folder) == before
    assert found(folder) == undisturbed[:BATCH]


def test_a_quota(undisturbed, tmp_path):
    """Files that may not grow (RLIMIT_FSIZE, for those who cannot mount): the same line, and nothing lost."""
    before = done_before(tmp_path, 2)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(InvalidInput, match=r"00000004-00000006\.parquet cannot be written .*make room"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before
    assert timeless(run(tmp_path)) == undisturbed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(tmp_path):
    """A new run that may not write is a wrong call."""
    tmp_path.chmod(0o555)
    with pytest.raises(InvalidInput, match=r"run\.json cannot be written .*Permission denied"):
        run(tmp_path / "run")


def flipped(content: bytes, bit: int) -> bytes:
    number = int.from_bytes(content, "big") ^ 1 << bit
    return number.to_bytes(len(content), "big")


@pytest.fixture(scope="module")
def shard(whole):
    """A shard's bytes, and a place for a copy that is not what was written."""
    return (whole / SHARDS[0]).read_bytes(), Store("memory://damaged"), run_of(whole)


@settings(max_examples=300)
@given(data=st.data())
def test_any_bit_that_flips_is_seen(data, shard):
    """Wherever it is: in pages, in statistics, in the schema or in the checksum itself."""
    content, store, own = shard
    store.write(SHARDS[0], content)
    assert len(read_shard(store, SHARDS[0], own)) == BATCH
    store.write(SHARDS[0], flipped(content, data.draw(st.integers(0, 8 * len(content) - 1))))
    with pytest.raises(
        DamagedShard, match=r"00000000-00000002\.parquet is damaged \(its checksum is wrong or missing\)"
    ):
        read_shard(store, SHARDS[0], own)


@settings(max_examples=60)
@given(data=st.data())
def test_any_other_length_is_seen(data, shard):
    """Cut off anywhere, or with something behind."""
    content, store, own = shard
    kept = data.draw(st.integers(0, len(content) - 1))
    for other in (content[:kept], content + data.draw(st.binary(min_size=1, max_size=9)), content[kept:]):
        if other != content:
            store.write(SHARDS[0], other)
            with pytest.raises(DamagedShard):
                read_shard(store, SHARDS[0], own)


def bare(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def other_columns(output: Path) -> bytes:
    table = open_shard(output, SHARDS[1]).table
    write_table(output / "elsewhere", "x", table.drop_columns(["refuted"]), run_of(output))
    return (output / "elsewhere" / "x").read_bytes()


def other_run(output: Path) -> bytes:
    run(output / "elsewhere", seed=1)
    return (output / "elsewhere" / SHARDS[1]).read_bytes()


def too_few(output: Path) -> bytes:
    write_shard(output / "elsewhere", SHARDS[1], read_shard(output, SHARDS[1], run_of(output))[:1], run_of(output))
    return (output / "elsewhere" / SHARDS[1]).read_bytes()


DAMAGE = {
    "empty": (lambda output: b"", "checksum"),
    "cut": (lambda output: (output / SHARDS[1]).read_bytes()[:-1], "checksum"),
    "flipped": (lambda output: flipped((output / SHARDS[1]).read_bytes(), 20_000), "checksum"),
    "unsealed": (lambda output: bare(open_shard(output, SHARDS[1]).table), "checksum"),
    "other images": (lambda output: (output / SHARDS[2]).read_bytes(), "other images"),
    "too few": (too_few, "other images"),
    "other columns": (other_columns, "other columns"),
    "other run": (other_run, "another run"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named_and_done_again(kind, whole, undisturbed, tmp_path, monkeypatch):
    """That batch and no other; whoever only reads the run refuses it."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before, (damaged, reason) = contents(tmp_path), DAMAGE[kind]
    (tmp_path / SHARDS[1]).write_bytes(damaged(tmp_path))
    with pytest.raises(InvalidInput, match=rf"00000002-00000004\.parquet is damaged \(.*{reason}.*repeat the run's"):
        read_records(tmp_path)
    done, told, original = [], [], module.evaluate_batch

    def batch(model, x, y, first, *rest, **options):
        done.append(first)
        return original(model, x, y, first, *rest, **options)

    monkeypatch.setattr(module, "evaluate_batch", batch)
    assert timeless(run(tmp_path, on_damaged=lambda *what: told.append(what))) == undisturbed
    assert done == [2]
    assert [name for name, _ in told] == [SHARDS[1]]
    assert reason in told[0][1]
    assert {**contents(tmp_path), "00000002-00000004.parquet": b""} == {**before, "00000002-00000004.parquet": b""}


def test_shards_of_no_batch(whole, tmp_path):
    """A file that this run cannot have written is neither read nor overwritten: the run says which."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    odd = tmp_path / "records" / "00000001-00000003.parquet"
    odd.write_bytes((tmp_path / SHARDS[0]).read_bytes())
    with pytest.raises(InvalidInput, match=r"has records/00000001-00000003\.parquet, which is not of this run; remove"):
        run(tmp_path)
    write_shard(tmp_path, "records/00000001-00000003.parquet", read_records(whole)[1:3], run_of(tmp_path))
    with pytest.raises(InvalidInput, match="has image 1 in two shards"):
        read_records(tmp_path)


def test_the_command_line_says_what_was_done_again(checkpoint, tmp_path):
    """On the console, and in summary.json beside the numbers."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 4, "--batch-size", 2]
    given += ["--output", tmp_path]
    assert call(*given).exit_code == 0
    assert json.loads((tmp_path / "summary.json").read_text())["redone"] == {}
    (tmp_path / SHARDS[1]).write_bytes(b"")
    again = call(*given)
    assert again.exit_code == 0
    assert f"shard {tmp_path / SHARDS[1]} is damaged (its checksum is wrong or missing)" in again.stderr
    redone = json.loads((tmp_path / "summary.json").read_text())["redone"]
    assert redone == {SHARDS[1]: "its checksum is wrong or missing"}


class Kept(MemoryFileSystem):
    """A place on some network, as far as anybody here can tell."""

    protocol = "kept"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]


def test_a_run_on_a_store_that_is_no_folder(undisturbed, checkpoint):
    """Records, resume and summary go wherever fsspec goes; not to memory, which ends with the command."""
    fsspec.register_implementation("kept", Kept, clobber=True)
    store = Store("memory://resume/run")
    assert timeless(run(store)) == undisturbed
    store.write(SHARDS[0], b"")
    store.remove(SHARDS[1])
    told = []
    assert timeless(run(store, on_damaged=lambda *what: told.append(what[0]))) == undisturbed
    assert told == [SHARDS[0]]
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2]
    assert call(*given, "--output", "kept://resume/command").exit_code == 0
    assert json.loads(Store("kept://resume/command").read("summary.json"))["images"] == 2
    refused(call(*given, "--output", "memory://resume/command"), "which is gone when the command ends; name a folder")
    refused(call(*given, "--output", ""), "output is empty; name a folder")

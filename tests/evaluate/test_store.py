"""Results are written whole or not at all, on this machine and elsewhere."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from evaluate.store import Store
from robustpatch.errors import InvalidInput


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return Store(tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}-{request.node.name}")


def test_what_is_written_is_read(store):
    """Files have names and contents, over what was there; folders come and need not be."""
    assert store.names("records", ".parquet") == []
    assert not store.exists("records/b.parquet")
    with pytest.raises(FileNotFoundError):
        store.read("records/b.parquet")
    for name, content in (("records/b.parquet", b"old"), ("records/b.parquet", b"b"), ("records/a.parquet", b"a")):
        store.write(name, content)
    store.write("run.json", b"{}")
    assert store.names("records", ".parquet") == ["records/a.parquet", "records/b.parquet"]
    assert (store.read("records/b.parquet"), store.read("run.json")) == (b"b", b"{}")
    store.remove("records/a.parquet")
    store.remove("records/a.parquet")
    assert store.names("records", ".parquet") == ["records/b.parquet"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    """A full disk is named with its remedy; the old file stays, and no part of the new one."""
    store = Store(tmp_path)
    store.write("records/a.parquet", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evaluate.store.os.replace", full)
    with pytest.raises(InvalidInput, match=r"a\.parquet cannot be written .*No space left.*make room or name another"):
        store.write("records/a.parquet", b"new")
    assert [path.name for path in Path(tmp_path, "records").iterdir()] == ["a.parquet"]
    assert store.read("records/a.parquet") == b"old"


@pytest.mark.parametrize("root", ["nothing://here", "s3//x://y"])
def test_a_place_that_nobody_knows(root):
    """Is a wrong call."""
    with pytest.raises(InvalidInput, match="output is"):
        Store(root)


def test_local_tells_folders_of_this_machine(tmp_path):
    """Others have none."""
    assert Store(tmp_path).local == tmp_path
    assert Store("memory://x").local is None
    assert Store.of(Store("memory://x")).path("run.json") == "memory://x/run.json"

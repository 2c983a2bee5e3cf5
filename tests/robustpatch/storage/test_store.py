"""Results are written whole or not at all, on this machine and elsewhere."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store


@pytest.fixture(params=["unnamed", "named"])
def writing(request, monkeypatch):
    """On a system where files need no name while they are written, if this is one, and where they do."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path, writing) -> Store:
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


def test_a_write_that_fails_leaves_what_was_there(tmp_path, writing, monkeypatch):
    """A full disk is named with its remedy; the old file stays, and no part of the new one."""
    store = Store(tmp_path)
    store.write("records/a.parquet", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("robustpatch.storage.store.os.replace", full)
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
    assert Store(tmp_path).local == Store(f"file://{tmp_path}").local == tmp_path
    assert Store("memory://x").local is None
    assert Store.of(Store("memory://x")).path("run.json") == "memory://x/run.json"


def test_paths_as_people_write_them(tmp_path, writing, monkeypatch):
    """From where the command is called, from home, or through a link: one place, whatever folder follows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("run")
    stores = [Store(name) for name in ("run", "~/run", "./run/", "x/../run", "link", tmp_path / "run")]
    (tmp_path / "run").mkdir()
    monkeypatch.chdir("/")
    for number, store in enumerate(stores):
        store.write("a", b"%d" % number)
        assert (tmp_path / "run" / "a").read_bytes() == b"%d" % number
    (tmp_path / "mine").write_bytes(b"a user's")
    (tmp_path / "run" / "b").symlink_to(tmp_path / "mine")
    stores[0].write("b", b"new")
    assert not stores[0].create("b", b"newer")
    assert (tmp_path / "run" / "b").read_bytes() == b"new"
    assert (tmp_path / "mine").read_bytes() == b"a user's"


def test_of_many_that_create_a_file_one_does(tmp_path, writing):
    """The others are told, and its content is what all of them read."""
    store = Store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for name in map(str, range(20)):
            contents = [f"{name} by {i}".encode() for i in range(8)]
            made = list(pool.map(lambda content, name=name: store.create(name, content), contents))
            assert made.count(True) == 1
            assert store.read(name) == contents[made.index(True)]
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, range(20)))


def test_a_file_that_is_there_is_not_created(store):
    """On a store that is no folder, too; and nor where there are no hard links."""
    assert store.create("run.json", b"first")
    assert not store.create("run.json", b"second")
    assert store.read("run.json") == b"first"


def test_without_hard_links(tmp_path, monkeypatch):
    """A file is created as well as it can be."""

    def no_links(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("robustpatch.storage.store.os.link", no_links)
    test_a_file_that_is_there_is_not_created(Store(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


class Remembering(MemoryFileSystem):
    """A store that keeps what it once saw of a folder, as those on the network do."""

    protocol = "remembering"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def ls(self, path, detail=True, **options):
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=detail, **options)
        return self.dircache[path]

    def exists(self, path, **options):
        if ("exists", path) not in self.dircache:
            self.dircache["exists", path] = super().exists(path, **options)
        return self.dircache["exists", path]

    def invalidate_cache(self, path=None):
        self.dircache.clear()


def test_what_others_write_is_seen():
    """Though the file system remembers that it was not there."""
    fsspec.register_implementation("remembering", Remembering, clobber=True)
    store = Store("remembering://run")
    store.write("records/a.parquet", b"a")
    assert store.names("records", ".parquet") == ["records/a.parquet"]
    assert not store.exists("records/b.parquet")
    Store("remembering://run").write("records/b.parquet", b"b")  # which is not told to what it remembers
    assert store.names("records", ".parquet") == ["records/a.parquet", "records/b.parquet"]
    assert store.exists("records/b.parquet")


def test_a_store_that_fails_in_its_own_way(monkeypatch):
    """What an object store raises, credentials that are missing for one, is a refusal and no defect."""

    def refuse(*_, **__):
        raise LookupError("no credentials")

    store = Store("memory://refusing")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    with pytest.raises(InvalidInput, match=r"memory://refusing, where a cannot be written \(no credentials\)"):
        store.write("a", b"")


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="here files have names while they are written")
def test_nothing_half_written_has_a_name(tmp_path, monkeypatch):
    """Until it is whole and on the disk; then the file that was there is replaced at one stroke."""
    store, real, seen = Store(tmp_path), os.fsync, []

    def look(descriptor: int) -> None:
        seen.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
        real(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    store.write("a", b"old")
    store.write("a", b"new")
    assert store.create("b", b"b")
    old, new = {"a": b"old"}, {"a": b"new"}
    assert seen == [{}, old, old, new, new, {**new, "b": b"b"}]  # each file, and then its name
    assert store.read("a") == b"new"
    mask = os.umask(0o022)
    os.umask(mask)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("missing", ["open", "link"])
def test_a_file_system_without_unnamed_files(tmp_path, monkeypatch, missing):
    """Is noticed where one is made or named, and written to by hidden names."""
    real = getattr(os, missing)

    def refuse(path, *arguments, **options):
        if missing == "link" or (arguments[0] & getattr(os, "O_TMPFILE", 0)) == getattr(os, "O_TMPFILE", 1):
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, missing, refuse)
    store = Store(tmp_path)
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    store.write("a", b"third")
    assert store.read("a") == b"third"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]

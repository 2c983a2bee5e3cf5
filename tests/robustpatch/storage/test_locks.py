"""What a killed process left half written goes, and what another one is writing stays."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from robustpatch.storage import locks
from robustpatch.storage import store as module
from robustpatch.storage.locks import being_written, part_name, remove_leftovers
from robustpatch.storage.store import Store, replace_file

pytest.importorskip("fcntl", reason="here nothing is known to be left over")
OTHERS = ["my.part", ".0123abcd.part.txt", ".0123abcg.part", "0123abcd.part"]


def half_written(folder):
    path = folder / part_name()
    path.write_bytes(b"half")
    return path


@pytest.mark.parametrize("write", [lambda at: replace_file(at / "a", b"a"), lambda at: Store(at).write("a", b"a")])
def test_a_write_removes_what_was_left_beside_it(tmp_path, write):
    """In its folder, not in those below, which may be anybody's; files of other names stay, and where links lead."""
    (tmp_path / "below").mkdir()
    below = half_written(tmp_path / "below")
    half_written(tmp_path)
    for name in OTHERS:
        (tmp_path / name).write_bytes(b"a user's")
    link = tmp_path / part_name()
    link.symlink_to(tmp_path / OTHERS[0])
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "below", *OTHERS, link.name}
    assert below.exists()
    assert all((tmp_path / name).read_bytes() == b"a user's" for name in OTHERS)


def test_what_is_being_written_stays(tmp_path):
    """Until its writer is done with it, or dead."""
    part = half_written(tmp_path)
    with open(part, "ab") as file, being_written(file.fileno()):
        file.close()
        remove_leftovers(tmp_path)
        assert part.exists()
    remove_leftovers(tmp_path)
    assert not part.exists()


@pytest.mark.parametrize("alone", [True, False])
def test_who_comes_last_removes_what_others_left(tmp_path, alone):
    """Such as a worker whose driver was killed, and that went on writing into the next run until it was ended too."""
    (tmp_path / "records").mkdir()
    with locks.held(tmp_path, alone=alone):
        part = half_written(tmp_path / "records")
        with locks.held(tmp_path, alone=alone):
            pass
        assert part.exists()
        with open(part, "ab") as file, being_written(file.fileno()), locks.held(tmp_path, alone=alone):
            pass
    assert list(tmp_path.iterdir()) == [tmp_path / "records"]
    assert not part.exists()


@pytest.mark.parametrize("most", [2, 99])
def test_a_file_that_is_removed_before_it_is_locked_is_written_again(tmp_path, monkeypatch, most):
    """As another process may do in the moment between; not for ever where something else removes it."""
    removed = []

    @contextmanager
    def late(descriptor):
        if len(removed) < most:
            removed.append(os.fstat(descriptor).st_ino)
            remove_leftovers(tmp_path)
        with being_written(descriptor):
            yield

    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    monkeypatch.setattr(module, "being_written", late)
    if most == 2:
        replace_file(tmp_path / "a", b"a")
        assert (tmp_path / "a").read_bytes() == b"a"
        assert len(removed) == 2
    else:
        with pytest.raises(FileNotFoundError):
            replace_file(tmp_path / "a", b"a")
        assert list(tmp_path.iterdir()) == []


def test_a_system_without_locks(tmp_path, monkeypatch):
    """Writes as ever, and takes nothing for left over."""
    monkeypatch.setattr(locks, "fcntl", None)
    left = half_written(tmp_path)
    replace_file(tmp_path / "a", b"a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", left.name}

"""Files of a run that somebody sent: what they claim to hold is bounded before it takes memory."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluate.runs.gallery import read_exhibits
from evaluate.runs.sealed_table import DamagedShard, read_parquet, read_table, run_named_by, write_table
from robustpatch.checkpoints import load_checkpoint
from robustpatch.errors import InvalidInput
from robustpatch.storage.npz import read_all_arrays
from robustpatch.storage.sealing import BLANK_SEAL, sealed
from robustpatch.storage.store import Store

KINDS = {"|u1": -1, "<i4": 1}


@pytest.fixture
def little_memory():
    """What a test may take, as Python and numpy count it."""
    tracemalloc.start()
    yield
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**26, most


def bomb(*shapes: tuple[int, ...]) -> bytes:
    """An archive of zeros: some thousandth of what it unpacks to."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, shape in enumerate(shapes):
            with archive.open(f"a{number}.npy", "w", force_zip64=False) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
                for _ in range(int(np.prod(shape)) >> 20):
                    file.write(bytes(2**20))
    return content.getvalue()


@pytest.mark.usefixtures("little_memory")
def test_an_archive_that_unpacks_to_much():
    """One array, or all together."""
    with pytest.raises(ValueError, match=r"more than 33,554,432 bytes"):
        read_all_arrays(bomb((2**26,)), KINDS, 2**25)
    with pytest.raises(ValueError, match=r"more than 33,554,432 bytes"):
        read_all_arrays(bomb(*[(2**23,)] * 5), KINDS, 2**25)
    with pytest.raises(InvalidInput, match=r"a\.npz are damaged \(.*; repeat the run's command"):
        read_exhibits(bomb((2**20,)), "a.npz")


def test_arrays_of_any_name(monkeypatch):
    """As they were saved; of other types, or twice of one name, they are refused. So is whatever is pickled."""
    content = io.BytesIO()
    arrays = {"x": np.arange(6, dtype="<i4"), "y": np.zeros((2, 3, 1), np.uint8), "z": np.zeros((), np.uint8)}
    np.savez_compressed(content, **arrays)
    np.testing.assert_equal(read_all_arrays(content.getvalue(), KINDS, 2**10), arrays)
    for wrong in (np.zeros((2, 2), "<i4"), np.zeros(2, "<i8"), np.array([{}], object), np.array("text")):
        content = io.BytesIO()
        np.savez(content, x=wrong)
        with pytest.raises(ValueError, match=r"x\.npy"):
            read_all_arrays(content.getvalue(), KINDS, 2**10)
    with zipfile.ZipFile(content, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", b"")
    with pytest.raises(ValueError, match="two members of one name"):
        read_all_arrays(content.getvalue(), KINDS, 2**10)


def packed(table: pa.Table, **options) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    return sink.getvalue().to_pybytes()


def test_parquet_that_unpacks_to_much(monkeypatch):
    """Many values, long ones told once, other ways of packing; no Parquet at all."""
    few = pa.table({"a": pa.array(["x" * 10_000] * 5_000).dictionary_encode().cast(pa.string())})
    content = packed(few)
    assert len(content) < 100_000
    assert read_parquet(content).equals(few)
    monkeypatch.setattr("evaluate.runs.sealed_table.MOST_BYTES", 2**24)
    with pytest.raises(ValueError, match="more than 16,777,216 bytes"):
        read_parquet(content)
    monkeypatch.setattr("evaluate.runs.sealed_table.MOST_VALUES", 4_999)
    with pytest.raises(ValueError, match="said to have 5,000 values; at most 4,999"):
        read_parquet(content)
    with pytest.raises(ValueError, match="a is packed by ZSTD"):
        read_parquet(packed(few[:10], compression="zstd"))
    for damaged in (b"", b"PAR1", content[:-9], content[:50] + content[90:]):
        with pytest.raises(ValueError, match=r"."):
            read_parquet(damaged)


SCHEMA = pa.schema([("a", pa.int64())])
FILES = {
    "[1]": "its JSON is no object",
    "{": "Expecting property name",
    '{"../x": "y"}': "names none under it",
    '{"/etc/passwd": "y"}': "names none under it",
    '{"x": 1}': "names none under it",
    "[" * 9_000: "nested too deeply",
    b"\xff": "can't decode",
}


@pytest.mark.parametrize("files", FILES)
def test_a_shard_that_is_sealed_by_somebody_else(files, tmp_path):
    """Anybody can make a seal: what it holds is damaged all the same, and no file above it is read."""
    table = pa.table({"a": [1]}).replace_schema_metadata({"run": "r", "files": files, "seal": BLANK_SEAL})
    (tmp_path / "a.parquet").write_bytes(sealed(packed(table)))
    with pytest.raises(DamagedShard, match=f"{FILES[files]}.*repeat the run's command"):
        read_table(tmp_path, "a.parquet", SCHEMA, "r")
    write_table(tmp_path, "b.parquet", pa.table({"a": [1]}), "r")
    assert read_table(tmp_path, "b.parquet", SCHEMA, "r").table["a"].to_pylist() == [1]


def test_a_seal_over_no_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(sealed(b"PAR1" + BLANK_SEAL.encode()))
    with pytest.raises(DamagedShard, match="it is no Parquet"):
        read_table(tmp_path, "a.parquet", SCHEMA, "r")
    assert run_named_by(tmp_path, "a.parquet") is None


def test_files_that_are_too_large(tmp_path):
    """Full of holes, they take no room on the disk."""
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(2**34)
    with pytest.raises(InvalidInput, match=r"run\.json cannot be read \(it has 17,179,869,184 bytes; at most"):
        Store(tmp_path).read("run.json")
    with pytest.raises(InvalidInput, match=r"it has more than 8,589,934,592 bytes"):
        load_checkpoint(tmp_path / "run.json")
    (tmp_path / "run.json").write_text(json.dumps({"a": 1}))
    assert Store(tmp_path).read("run.json") == b'{"a": 1}'

"""Tables of results in Parquet, each there whole or not at all, sealed by a checksum, by its run and by its files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.runs.bounded_parquet import read_parquet
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.sealing import BLANK_SEAL, seal_holds, sealed
from robustpatch.storage.store import Store

_RUN, _FILES, _OLD = b"run", b"files", "it is of an earlier version"  # keys of the metadata


class DamagedShard(InvalidInput):
    """A shard that is not what was written for its name and run; its images have to be done again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"shard {path} is damaged ({reason}); repeat the run's command, which does its images again")
        self.reason = reason


def write_table(output: str | Path | Store, name: str, table: pa.Table, run: str, files: Iterable[str] = ()) -> None:
    """Write a table of `run`, sealed by a checksum of every byte; a reader never sees half a file. `files` are those
    under `output` that belong to it and have been written: they are sealed with it, as they are.
    """
    store = Store.of(output)
    kept = {file: sha256(store.read(file)).hexdigest() for file in sorted(files)}
    about = {**(table.schema.metadata or {}), _RUN: run, _FILES: json.dumps(kept), "seal": BLANK_SEAL}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(about), sink)
    store.write(name, sealed(sink.getvalue().to_pybytes()))


def read_table(output: str | Path | Store, name: str, schema: pa.Schema, run: str) -> pa.Table:
    """The table that `write_table` wrote for this run. Raises `DamagedShard` for any other content, before it is
    parsed; the files that belong to it are not looked at.
    """
    store = Store.of(output)
    content = store.read(name)
    if not seal_holds(content):
        raise DamagedShard(store.path(name), "its checksum is wrong or missing")
    try:
        table = read_parquet(content)
        about = table.schema.metadata or {}
        files_of(table)
    except ValueError as error:  # sealed, but not by what seals here
        raise DamagedShard(store.path(name), one_line(error, 200)) from error
    if not table.schema.equals(schema):
        missing = sorted(set(_columns(schema)) - set(_columns(table.schema)))
        older = f": without {', '.join(missing)}, {_OLD}" if missing else ""
        raise DamagedShard(store.path(name), f"it has other columns{older}")
    if _FILES not in about:
        raise DamagedShard(store.path(name), _OLD)
    if about.get(_RUN) != run.encode():
        raise DamagedShard(store.path(name), "it is of another run")
    return table


def files_of(table: pa.Table) -> dict[str, str]:
    """The files that belong to a table, and the SHA-256 of each. Raises `ValueError` for what is no such list."""
    found = read_object((table.schema.metadata or {}).get(_FILES, b"{}"))
    if not all(isinstance(digest, str) and _is_inside(file) for file, digest in found.items()):
        raise ValueError("its list of files names none under it")
    return found


def _is_inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and "\0" not in name


def check_files(output: str | Path | Store, name: str, table: pa.Table) -> None:
    """Raises `DamagedShard` where a file that belongs to the table is not there as it was written."""
    store = Store.of(output)
    for file, digest in files_of(table).items():
        read_file(store, name, file, digest)


def read_file(output: str | Path | Store, name: str, file: str, digest: str) -> bytes:
    """A file that belongs to the table `name`. Raises `DamagedShard` where it is not there as it was written."""
    store = Store.of(output)
    try:
        content = store.read(file)
    except FileNotFoundError:
        raise DamagedShard(store.path(name), f"{file}, which belongs to it, is missing") from None
    if sha256(content).hexdigest() != digest:
        raise DamagedShard(store.path(name), f"{file}, which belongs to it, is not as it was written")
    return content


def whose(output: str | Path | Store, name: str) -> str | None:
    """The run that a table says it is of; None where it is damaged and may say anything."""
    content = Store.of(output).read(name)
    if not seal_holds(content):
        return None
    try:
        about = pq.read_schema(pa.BufferReader(content)).metadata or {}
        return about.get(_RUN, b"").decode()
    except (pa.ArrowException, OSError, ValueError):
        return None


def _columns(schema: pa.Schema) -> list[str]:
    """The names of the columns, and those inside lists of records."""
    inner = [field for field in schema if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)]
    return [*schema.names, *(f"{field.name}.{one.name}" for field in inner for one in field.type.value_type)]

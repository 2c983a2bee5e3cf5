"""Tables of results in Parquet, each there whole or not at all, sealed by a checksum, by its run and by its files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_json, read_object
from robustpatch.storage.sealing import BLANK_SEAL, seal_holds, sealed
from robustpatch.storage.store import Store

MOST_VALUES = 2**26  # of all columns: a batch of a thousand images under twenty attacks has some hundred thousand
MOST_BYTES = 2**31  # of the whole table in memory
_CODECS = ("SNAPPY", "UNCOMPRESSED")  # what is written here; the first makes of a byte some twenty at most, others more
_ROWS = 2**10  # read at once, so that a column of one long text, told once and meant often, is noticed in time
_RUN, _FILES, _SEAL = b"run", b"files", b"seal"  # keys of the metadata
_OLD = "it is of an earlier version"


class DamagedShard(InvalidInput):
    """A shard that is not what was written for its name and run; its images have to be done again."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"shard {path} is damaged ({reason}); repeat the run's command, which does its images again")
        self.reason = reason


@dataclass(frozen=True)
class SealedTable:
    """A table as it was written for its name and run, the SHA-256 of each file that belongs to it, and what was noted
    on its making.
    """

    store: Store
    name: str
    table: pa.Table
    files: dict[str, str]
    notes: dict[str, Any]

    def file(self, file: str) -> bytes:
        """A file that belongs to the table. Raises `DamagedShard` where it is not there as it was written."""
        try:
            content = self.store.read(file)
        except FileNotFoundError:
            raise self.damaged(f"{file}, which belongs to it, is missing") from None
        if sha256(content).hexdigest() != self.files[file]:
            raise self.damaged(f"{file}, which belongs to it, is not as it was written")
        return content

    def damaged(self, reason: str) -> DamagedShard:
        return DamagedShard(self.store.path(self.name), reason)


def write_table(
    output: str | Path | Store,
    name: str,
    table: pa.Table,
    run: str,
    files: Iterable[str] = (),
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a table of `run`, sealed by a checksum of every byte; a reader never sees half a file. `files` are those
    under `output` that belong to it and have been written: they are sealed with it, as they are. `notes`: what else is
    known of its making, as JSON types; those that are None are left out.
    """
    store = Store.of(output)
    kept = {file: sha256(store.read(file)).hexdigest() for file in sorted(files)}
    noted = {key: json.dumps(value) for key, value in (notes or {}).items() if value is not None}
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({**noted, _RUN: run, _FILES: json.dumps(kept), _SEAL: BLANK_SEAL}), sink
    )
    store.write(name, sealed(sink.getvalue().to_pybytes()))


def read_table(output: str | Path | Store, name: str, schema: pa.Schema, run: str) -> SealedTable:
    """Read what `write_table` wrote for this run. Raises `DamagedShard` for any other content, before it is parsed; the
    files that belong to it are not looked at.
    """
    store = Store.of(output)
    content = store.read(name)
    if not seal_holds(content):
        raise DamagedShard(store.path(name), "its checksum is wrong or missing")
    try:
        table = read_parquet(content)
        about = dict(table.schema.metadata or {})
        own, files = about.pop(_RUN, None), about.pop(_FILES, None)
        notes = {key.decode(): read_json(value) for key, value in about.items() if key != _SEAL}
        found = SealedTable(store, name, table.replace_schema_metadata(None), _listed(files or b"{}"), notes)
    except ValueError as error:  # sealed, but not by what seals here
        raise DamagedShard(store.path(name), one_line(error, 200)) from error
    if not table.schema.equals(schema):
        missing = sorted(set(_columns(schema)) - set(_columns(table.schema)))
        older = f": without {', '.join(missing)}, {_OLD}" if missing else ""
        raise found.damaged(f"it has other columns{older}")
    if files is None:
        raise found.damaged(_OLD)
    if own != run.encode():
        raise found.damaged("it is of another run")
    return found


def damage_of(read: Callable[[], object]) -> str | None:
    """Read a shard, and return what is wrong with it: "" where there is none, None where it is as it was written."""
    try:
        read()
    except FileNotFoundError:
        return ""
    except DamagedShard as error:
        return error.reason
    return None


def run_named_by(output: str | Path | Store, name: str) -> str | None:
    """Return the run that a table says it is of; None where it is damaged and may say anything."""
    content = Store.of(output).read(name)
    if not seal_holds(content):
        return None
    try:
        return (pq.read_schema(pa.BufferReader(content)).metadata or {}).get(_RUN, b"").decode()
    except (pa.ArrowException, OSError, ValueError):
        return None


def read_parquet(content: bytes) -> pa.Table:
    """Read a Parquet file that nobody vouches for. Raises `ValueError` where it is none, or larger or otherwise packed
    than any that is written here; both are known before it takes memory.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        values = sum(column.num_values for column in columns)
        if values > MOST_VALUES:
            raise ValueError(f"it is said to have {values:,} values; at most {MOST_VALUES:,} are read")
        for column in columns:
            if column.compression not in _CODECS:
                raise ValueError(f"{column.path_in_schema} is packed by {column.compression}, not by {_CODECS[0]}")
        size, batches = 0, list[pa.RecordBatch]()
        for batch in file.iter_batches(_ROWS):
            size += batch.nbytes
            if size > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            batches.append(batch)
        return pa.Table.from_batches(batches, file.schema_arrow)
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no Parquet ({error})") from error


def _listed(content: bytes) -> dict[str, str]:
    """The files that belong to a table, by SHA-256. Raises `ValueError` for what is no list of files under it."""
    found = read_object(content)
    for file, digest in found.items():
        if not isinstance(digest, str) or file.startswith("/") or ".." in file.split("/") or "\0" in file:
            raise ValueError("its list of files names none under it")
    return found


def _columns(schema: pa.Schema) -> list[str]:
    """The names of the columns, and those inside lists of records."""
    inner = [field for field in schema if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type)]
    return [*schema.names, *(f"{field.name}.{one.name}" for field in inner for one in field.type.value_type)]

"""Parquet that nobody vouches for: what it may cost is bounded before and while it is decompressed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

MOST_VALUES = 2**26  # of all columns: a batch of a thousand images under twenty attacks has some hundred thousand
MOST_BYTES = 2**31  # of the whole table in memory
_CODECS = ("SNAPPY", "UNCOMPRESSED")  # what is written here; the first makes of a byte some twenty at most, others more
_ROWS = 2**10  # read at once, so that a column of one long text, told once and meant often, is noticed in time


def read_parquet(content: bytes) -> pa.Table:
    """The table of a Parquet file. Raises `ValueError` where it is none, or larger or otherwise packed than any that is
    written here.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        about = file.metadata
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
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

"""One row for each checkpoint, voting rule and image, in Parquet shards that are there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluate.runs.records import shard_name
from evaluate.runs.run_identity import run_of
from evaluate.runs.shards import DamagedShard, read_table, write_table
from robustpatch.certificates.exact import Method
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_json, read_object
from robustpatch.storage.store import Store

_SECONDS = b"seconds"  # in the metadata of a shard: the one thing in which two equal runs may differ
_DEVIATION = b"float32_deviation"  # in the metadata of a shard
_TEXTS = ("checkpoint", "ablation", "voting")


def margin_column(method: Method, patch: object) -> str:
    """The column with the margins against one patch: certified iff ≥ 0."""
    return f"margin_{method} {patch}"


def top_column(k: int, patch: object) -> str:
    """The column with the margins of the label among the k most voted, against one patch: certified iff ≥ 0."""
    return f"margin_top{k} {patch}"


def schema(patches: Sequence[object], top_k: Sequence[int] = ()) -> pa.Schema:
    """The columns of a shard.

    `largest_certified` and `largest_certified_margin` are sides of squares, by the exact certificate and by the paper's
    margin; 0 where there is none. `close_votes` counts votes within the guard of turning over. `rank`, where top k
    are asked for, is how many classes come before the label.
    """
    numbers = ("index", "label", "prediction", "largest_certified", "largest_certified_margin", "close_votes")
    margins = [margin_column(method, patch) for patch in patches for method in ("exact", "margin")]
    if top_k:
        margins += ["rank", *(top_column(k, patch) for patch in patches for k in top_k)]
    return pa.schema([(name, pa.string()) for name in _TEXTS] + [(name, pa.int64()) for name in (*numbers, *margins)])


def sweep_shard(checkpoint: str, first: int, stop: int) -> str:
    """The shard of one checkpoint's images first, …, stop - 1."""
    folder, _, name = shard_name(first, stop).rpartition("/")
    return f"{folder}/{checkpoint}/{name}"


def write_sweep_shard(
    output: str | Path | Store,
    name: str,
    run: str,
    rows: Sequence[dict[str, Any]],
    whole: pa.Schema,
    seconds: dict[str, float],
    float32_deviation: float | None = None,
) -> None:
    """Write columns of `run`, one dictionary of them for each voting rule, and beside them the time they took, and how
    far the scores were from float32's, where they were computed in less.
    """
    tables = [pa.table({column: some[column] for column in whole.names}, schema=whole) for some in rows]
    about = {_SECONDS: json.dumps(seconds).encode(), _DEVIATION: json.dumps(float32_deviation).encode()}
    write_table(output, name, pa.concat_tables(tables).replace_schema_metadata(about), run)


@dataclass(frozen=True)
class SweepRun:
    """A finished sweep: its run.json, columns by (checkpoint, voting), each by index, and by checkpoint the seconds and
    the largest distance of a score from float32's that was seen, None where it was computed in float32.
    """

    configuration: dict[str, Any]
    columns: dict[tuple[str, str], dict[str, np.ndarray]]
    seconds: dict[str, dict[str, float]]
    float32_deviations: dict[str, float | None] = field(default_factory=dict)


def read_sweep(output: str | Path | Store) -> SweepRun:
    """The rows of a finished sweep. Raises `InvalidInput` where one is missing, damaged, or of another run or kind."""
    store = Store.of(output)
    try:
        configuration = read_object(store.read("run.json"))
        checkpoints, votings, patches, total = (
            configuration[key] for key in ("checkpoints", "votings", "patches", "num_images")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{output} holds no sweep ({error!r}); name an --output of evaluate.sweep") from error
    run = run_of(store)
    columns, seconds, deviations, whole = {}, {}, {}, schema(patches, configuration.get("top_k", ()))
    for name in (checkpoint["name"] for checkpoint in checkpoints):
        shards = [_read(store, shard, run, whole) for shard in store.names(f"records/{name}", ".parquet")]
        rows = pa.concat_tables([whole.empty_table(), *(table for table, _, _ in shards)])
        seconds[name] = {
            part: sum(times.get(part, 0.0) for _, times, _ in shards) for part in ("scoring", "certifying")
        }
        deviations[name] = max((deviation for _, _, deviation in shards if deviation is not None), default=None)
        for voting in votings:
            own = rows.filter(pc.field("voting") == voting).sort_by("index")
            found = {field: own[field].to_numpy() for field in own.column_names if field not in _TEXTS}
            if not np.array_equal(found["index"], np.arange(total)):
                raise InvalidInput(
                    f"{output} has {len(own)} of {total} images of {name}, {voting}; repeat its command to finish it"
                )
            columns[name, voting] = found
    return SweepRun(configuration, columns, seconds, deviations)


def damage(output: str | Path | Store, name: str, run: str, whole: pa.Schema) -> str | None:
    """What is wrong with a shard of the run; "" where there is none, None where it is as it was written."""
    try:
        _read(output, name, run, whole)
    except FileNotFoundError:
        return ""
    except DamagedShard as error:
        return error.reason
    return None


def _read(
    output: str | Path | Store, name: str, run: str, whole: pa.Schema
) -> tuple[pa.Table, dict[str, float], float | None]:
    """The rows, seconds, and the distance from float32."""
    table = read_table(output, name, whole, run)
    about = table.schema.metadata
    try:
        seconds, deviation = read_object(about[_SECONDS]), read_json(about.get(_DEVIATION, b"null"))
    except (KeyError, ValueError) as error:
        raise DamagedShard(Store.of(output).path(name), "what it says of its making is no JSON") from error
    return table.replace_schema_metadata(None), seconds, deviation

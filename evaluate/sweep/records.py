"""One row for each checkpoint, voting rule and image, in Parquet shards that are there whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evaluate.results.table import schema
from evaluate.runs.records import shard_name
from evaluate.runs.run_identity import run_of
from evaluate.runs.sealed_table import read_table
from evaluate.sweep.columns import columns
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store


def sweep_shard(checkpoint: str, first: int, stop: int) -> str:
    """The shard of one checkpoint's images first, …, stop - 1."""
    folder, _, name = shard_name(first, stop).rpartition("/")
    return f"{folder}/{checkpoint}/{name}"


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
        names = [checkpoint["name"] for checkpoint in configuration["checkpoints"]]
        votings, total = configuration["votings"], configuration["num_images"]
        patches = [str(patch) for patch in configuration["patches"]]
        whole = schema(columns(patches, configuration.get("top_k", ())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"{output} holds no sweep ({error!r}); name an --output of robustpatch sweep") from error
    run, found, seconds, deviations = run_of(store), {}, {}, {}
    for name in names:
        shards = [read_table(store, shard, whole, run) for shard in store.names(f"records/{name}", ".parquet")]
        rows = pa.concat_tables([whole.empty_table(), *(shard.table for shard in shards)])
        seconds[name] = {
            part: sum(shard.notes.get("seconds", {}).get(part, 0.0) for shard in shards)
            for part in ("scoring", "certifying")
        }
        noted = [shard.notes.get("float32_deviation") for shard in shards]
        deviations[name] = max((one for one in noted if one is not None), default=None)
        for voting in votings:
            own = rows.filter(pc.field("voting") == voting).sort_by("index")
            numbers = [column.name for column in whole if column.type == pa.int64()]
            found[name, voting] = {column: own[column].to_numpy() for column in numbers}
            if not np.array_equal(found[name, voting]["index"], np.arange(total)):
                raise InvalidInput(
                    f"{output} has {len(own)} of {total} images of {name}, {voting}; repeat its command to finish it"
                )
    return SweepRun(configuration, found, seconds, deviations)

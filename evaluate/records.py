"""The record of one image, and Parquet shards of them, each there whole or not at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evaluate.store import Store
from robustpatch.errors import InvalidInput

TIMES = ("seconds",)  # the only fields in which two equal runs may differ


@dataclass(frozen=True)
class AttackRecord:
    """One attack under one threat on one image. `unpruned`: every ablation scored, no placement skipped.

    `corners` are the (row, column) of each rectangle, flattened; `visited` the share of the open placements tried;
    `contained` and `in_range` the judge's finding on the proposal; `by` the member of an ensemble that proposed it.
    Of a smoothed classifier, how many ablations the patch `touched`, how many of them it `turned` to a rival, and the
    `lead` in votes that was left to the prediction (see `evaluate.gap.Damage`).
    """

    attack: str
    threat: str
    unpruned: bool
    broken: bool
    contained: bool
    in_range: bool
    prediction: int
    corners: list[int]
    evaluations: int
    visited: float
    seconds: float
    by: str | None = None
    touched: int | None = None
    turned: int | None = None
    lead: int | None = None


@dataclass(frozen=True)
class Record:
    """One image: its prediction, what was proved of it, and how each attack fared.

    Margins are worst cases, certified iff ≥ 0 (randomized: > 0); `largest_certified` is the side of a square. The
    paper's margin and the largest square are None for classifiers that do not offer them; of one without certificates,
    `consistent` and `certified_exact` are too. `close_votes` counts votes within the guard of turning over, of `votes`
    cells in all. Attacks are those run: none on an image neither certified nor classified correctly, which needs none.
    `consistent` says that `predict` returned the certified prediction. `refuted`: the vote-level adversary,
    `attacks.worst_votes`, changes it; None where there are no votes.

    Of a randomized classifier, `confidence` is its certificates', and `error` what the chance of a violation of this
    image is at most, though all is right: 1 - `confidence`, and the errors of the predictions asked. The prediction is
    its `predict`'s (-1: it abstains), where certified the certificate's. None for all others.
    """

    index: int
    label: int
    prediction: int
    consistent: bool | None
    certified_exact: bool | None
    margin_exact: float | None
    certified_margin: bool | None
    margin_margin: float | None
    largest_certified: int | None
    close_votes: int
    votes: int
    refuted: bool | None = None
    confidence: float | None = None
    error: float | None = None
    attacks: list[AttackRecord] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        return self.prediction == self.label

    @property
    def certified(self) -> bool:
        """Certified by any method, for whatever class."""
        return bool(self.certified_exact or self.certified_margin)

    @property
    def threats_tested(self) -> set[str]:
        """Threats under which some attack leaned on nothing it tests, tried a patch and stayed within the threat.

        Evaluations alone do not say that: the clean image's are among them, and may be all that the budget allows.
        """
        tried = [a for a in self.attacks if a.unpruned and a.evaluations > 0 and a.visited > 0]
        return {a.threat for a in tried if a.contained and a.in_range}

    @property
    def violations(self) -> list[str]:
        """Attacks that changed this certified prediction; "predict" where predict contradicts the certificate."""
        if not self.certified:
            return []
        return ([] if self.consistent else ["predict"]) + [a.attack for a in self.attacks if a.broken]


_ATTACK = pa.struct(
    [
        ("attack", pa.string()),
        ("threat", pa.string()),
        ("unpruned", pa.bool_()),
        ("broken", pa.bool_()),
        ("contained", pa.bool_()),
        ("in_range", pa.bool_()),
        ("prediction", pa.int64()),
        ("corners", pa.list_(pa.int64())),
        ("evaluations", pa.int64()),
        ("visited", pa.float64()),
        ("seconds", pa.float64()),
        ("by", pa.string()),
        ("touched", pa.int64()),
        ("turned", pa.int64()),
        ("lead", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("label", pa.int64()),
        ("prediction", pa.int64()),
        ("consistent", pa.bool_()),
        ("certified_exact", pa.bool_()),
        ("margin_exact", pa.float64()),
        ("certified_margin", pa.bool_()),
        ("margin_margin", pa.float64()),
        ("largest_certified", pa.int64()),
        ("close_votes", pa.int64()),
        ("votes", pa.int64()),
        ("refuted", pa.bool_()),
        ("confidence", pa.float64()),
        ("error", pa.float64()),
        ("attacks", pa.list_(_ATTACK)),
    ]
)


def shard_name(first: int, stop: int) -> str:
    """The shard of images first, …, stop - 1, as `Store` names it."""
    return f"records/{first:08d}-{stop:08d}.parquet"


def write_shard(output: str | Path | Store, name: str, records: list[Record]) -> None:
    """Write the records; a reader never sees half a file."""
    write_table(output, name, pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMA))


def write_table(output: str | Path | Store, name: str, table: pa.Table) -> None:
    """Write a table; a reader never sees half a file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    Store.of(output).write(name, sink.getvalue().to_pybytes())


def read_shard(output: str | Path | Store, name: str) -> list[Record]:
    """The records of one shard. Raises `InvalidInput` when it is damaged."""
    store = Store.of(output)
    try:
        rows = pq.read_table(pa.BufferReader(store.read(name)), schema=SCHEMA).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InvalidInput(
            f"shard {store.path(name)} is damaged ({error}); delete it, and the run does its images again"
        ) from error
    return [Record(**{**row, "attacks": [AttackRecord(**attack) for attack in row["attacks"]]}) for row in rows]


def read_records(output: str | Path | Store) -> list[Record]:
    """All records of a run, by index."""
    store = Store.of(output)
    shards = store.names("records", ".parquet")
    return sorted((record for shard in shards for record in read_shard(store, shard)), key=lambda record: record.index)

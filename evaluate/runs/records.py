"""The record of one image, and shards of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from attacks.occlusion import CONTROLS
from evaluate.results.table import schema_of
from evaluate.runs.run_identity import run_of
from evaluate.runs.sealed_table import SealedTable, read_table, write_table
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store


@dataclass(frozen=True)
class AttackRecord:
    """One attack under one threat on one image. `unpruned`: every ablation scored, no placement skipped.

    `corners` are the (row, column) of each rectangle, flattened; none where the threat has no place on the image, which
    was not attacked then. `visited` the share of the open placements tried;
    `contained` and `in_range` the judge's finding on the proposal; `by` the member of an ensemble that proposed it.
    `patches`: how many distinct patched images the judge was asked about, inside the threat and in range, that show a
    patch: some value is another than the clean image's by half a grey level of 8 bits or more. At most one; of an
    ensemble, those of all members but controls. What an attack says of itself (`evaluations`, `visited`) has no part.
    Of a smoothed classifier, how many ablations the patch `touched`, how many of them it `turned` to a rival, and the
    `lead` in votes that was left to the prediction (see `evaluate.runs.attacking.Damage`).
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
    patches: int = 0
    touched: int | None = None
    turned: int | None = None
    lead: int | None = None

    @property
    def forgiven(self) -> bool:
        """True where the model abstained under a patch within the threat, and that was no change of the prediction."""
        return self.prediction < 0 and self.contained and self.in_range and not self.broken


@dataclass(frozen=True)
class Record:
    """One image: its prediction, what was proved of it, and how each attack fared.

    Margins are worst cases, certified iff ≥ 0 (randomized: > 0); `largest_certified` is the side of a square, or the
    size of another family (`Settings.growing`). The paper's margin and the largest size are None for classifiers that
    do not offer them; of one without certificates, `consistent` and `certified_exact` are too. `close_votes` counts
    votes within the guard of turning over, of `votes` cells in all. Attacks are those run: none on an image neither
    certified nor classified correctly, which needs none.
    `consistent` says that `predict`, where it was asked, returned the certified prediction. `refuted`: the vote-level
    adversary, `attacks.worst_votes`, changes it; None where there are no votes. `placeless`: no patch of the threat has
    a place on the image. `file`: CLASS/FILE of a photograph.

    Of a randomized classifier, `confidence` is its certificates', and `error` what the chance of a violation of this
    image is at most, though all is right: 1 - `confidence`, and the errors of the predictions asked. The prediction is
    its `predict`'s (-1: it abstains), where certified the certificate's; `predicted` and `refereed` are what `predict`
    and the referee answered of the clean image in any case. None for all others.

    Of a classifier that answers attacks by an alert (-1), `alerted` says whether it did so of the clean image, and the
    certificates say that under every patch the class stays or there is an alert. None for all others.
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
    predicted: int | None = None
    refereed: int | None = None
    placeless: bool = False
    alerted: bool | None = None
    file: str | None = None
    attacks: list[AttackRecord] = field(default_factory=list)

    @property
    def correct(self) -> bool:
        """True where the label is predicted; an abstention is no answer, whatever a certificate says in its place."""
        return self.prediction == self.label and (self.predicted is None or self.predicted >= 0)

    @property
    def certified(self) -> bool:
        """Certified by any method, for whatever class."""
        return bool(self.certified_exact or self.certified_margin)

    @property
    def broken(self) -> bool:
        """Changed by some attack."""
        return any(attack.broken for attack in self.attacks)

    @property
    def threats_tested(self) -> set[str]:
        """Threats under which some attack leaned on nothing it tests, and a patch of it within the threat was judged.

        Evaluations alone do not say that: the clean image's are among them, and may be all that the budget allows; nor
        does an attack that only returns the clean image. A control, known by its name, is no attack: it says nothing of
        what a search would find. None of an image that the referee does not answer even when clean: whatever was put
        on it, no prediction could have changed. A threat that has no place on the image is none to be tested.
        """
        if self.refereed is not None and self.refereed < 0:
            return set()
        attacks = [a for a in self.attacks if a.attack not in CONTROLS]
        tried = [a for a in attacks if a.unpruned and a.evaluations > 0 and a.visited > 0 and a.patches > 0]
        return {a.threat for a in tried if a.contained and a.in_range} | {a.threat for a in attacks if not a.corners}

    @property
    def patches(self) -> int:
        """The number of patches of attacks, not of controls, that were judged; each attack and threat counts apart."""
        return sum(a.patches for a in self.attacks if a.attack not in CONTROLS)

    @property
    def violations(self) -> list[str]:
        """Attacks that changed this certified prediction; "predict" where predict contradicts the certificate."""
        if not self.certified:
            return []
        return ([] if self.consistent else ["predict"]) + [a.attack for a in self.attacks if a.broken]


SCHEMA = schema_of(Record)
_NAME = re.compile(r"records/(\d{8,})-(\d{8,})\.parquet")


def shard_name(first: int, stop: int) -> str:
    """The shard of images first, …, stop - 1, as `Store` names it."""
    return f"records/{first:08d}-{stop:08d}.parquet"


def write_shard(
    output: str | Path | Store,
    name: str,
    records: list[Record],
    run: str | None = None,
    files: Iterable[str] = (),
    **notes: Any,
) -> None:
    """Write the records as those of `run` (that of `output` unless given; see `run_of`), with the `files`, written
    before, that belong to them.

    Notes: float32_deviation, how far the scores of their images were from float32's, where they were computed in less;
    probe, what the model answered a few patched images (`evaluate.model.probe`); worker, what the worker of a cluster
    that made them says of itself. Those that are None are left out.
    """
    table = pa.Table.from_pylist([_row(record) for record in records], schema=SCHEMA)
    write_table(output, name, table, run_of(output) if run is None else run, files, notes)


def _row(record: Record) -> dict[str, Any]:
    """The record's fields. (`asdict` copies each of them deeply, which takes as long as certifying.)"""
    return {**vars(record), "attacks": [vars(attack) for attack in record.attacks]}


def open_shard(output: str | Path | Store, name: str, run: str | None = None) -> SealedTable:
    """Read a shard of `run` (as above). Raises `DamagedShard`."""
    return read_table(output, name, SCHEMA, run_of(output) if run is None else run)


def read_shard(output: str | Path | Store, name: str, run: str | None = None, *, whole: bool = False) -> list[Record]:
    """Read the records of one shard. Raises `DamagedShard` when they are not those of its name and of `run` (as above),
    and, if it is to be `whole`, when a file that belongs to it is not as it was written.
    """
    shard = open_shard(output, name, run)
    for file in shard.files if whole else ():
        shard.file(file)
    rows, match = shard.table.to_pylist(), _NAME.fullmatch(name)
    if match is None or [row["index"] for row in rows] != list(range(*map(int, match.groups()))):
        raise shard.damaged("it has other images than its name says")
    return [Record(**{**row, "attacks": [AttackRecord(**attack) for attack in row["attacks"]]}) for row in rows]


def read_deviation(output: str | Path | Store) -> float | None:
    """The largest distance of a score from float32's that was seen on images of the run; None where none was sought."""
    found = _noted(output, "float32_deviation")
    return max((float(one) for one in found if isinstance(one, int | float)), default=None)


def read_workers(output: str | Path | Store) -> list[dict[str, Any]]:
    """Descriptions that the workers of a cluster noted of themselves with the records they made, in the order of the
    images, each once; none of records that were made in the driver's own process.
    """
    found = [one for one in _noted(output, "worker") if isinstance(one, dict)]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def _noted(output: str | Path | Store, key: str) -> list[Any]:
    """Each shard's note, in the order of the images."""
    store = Store.of(output)
    run = run_of(store)
    return [open_shard(store, name, run).notes.get(key) for name in store.names("records", ".parquet")]


def read_records(output: str | Path | Store) -> list[Record]:
    """All records of a run, by index. Raises `InvalidInput` where a shard is damaged or two hold the same image."""
    store = Store.of(output)
    run, shards = run_of(store), store.names("records", ".parquet")
    records = sorted((one for shard in shards for one in read_shard(store, shard, run)), key=lambda one: one.index)
    for one, other in pairwise(records):
        if one.index == other.index:
            raise InvalidInput(
                f"output {store} has image {one.index} in two shards of {', '.join(shards)}; remove the one that is "
                "not of this run"
            )
    return records

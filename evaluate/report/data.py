"""A run's folder -> everything that its report shows."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.report.cards import Card, ThreatPicture, read_cards
from evaluate.report.note import assumption, budgets, command_of, title_of
from evaluate.results.metrics import AttackSummary, Share, Summary, as_json, certified_by_size, summarise
from evaluate.results.report_columns import ClassRow, Line
from evaluate.results.sentences import gap_text, survival_text
from evaluate.results.sentences import verdict as verdict_of
from evaluate.runs.gallery import outcome
from evaluate.runs.records import Record, read_deviation, read_records
from evaluate.runs.replay import replay_command
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store

SCHEMA = "robustpatch-report/1"


@dataclass(frozen=True)
class AttackRow(AttackSummary):
    """One attack. `budget` is what it was given on an open image, None where the attack says of none of its own; on
    certified ones `certified_budget` holds, 0 where there is no limit.
    """

    name: str
    budget: int | None
    certified_budget: int

    def line(self) -> Line:
        """The attack in the run's table."""
        return Line(self.name, self.accuracy, self, self.budget, self.certified_budget)


@dataclass(frozen=True)
class Report:
    """The content of the page and of report.json, field by field.

    Attributes:
        schema: names this form. title: what was run on what.
        finished: whether all `planned` images have records; `images` are those that have.
        summary: as in summary.json (`evaluate.results.metrics.Summary`), with configuration, command and versions.
        survival: how many images stood up to what was tried, and how many provably to everything, in words.
        verdict: one sentence that begins with HELD, BROKEN, NOT TESTED or NO CERTIFICATE. assumption: what every
            certificate of the run leans on, guard and confidence included. gap: what is left between proof and attacks.
        attacked: whether any attack was run; else nothing is said of accuracy under attack.
        parts: disjoint counts of all images: "certified" (and correct), "standing" (neither proved nor broken),
            "broken", "wrong" (before any attack), "violated" (certified, and changed all the same).
        sides: side of a square patch, or size of the run's `growing` ones -> share classified correctly and certified
            against it; empty without votes.
        attacks, classes: tables. threat: drawn on an image.
        cards: the gallery. scale: its maps are coloured from -scale to scale votes.
        command: repeats the run; None where it is not known.
        replays: commands that show each counterexample again.
    """

    schema: str
    title: str
    finished: bool
    images: int
    planned: int
    summary: dict[str, Any]
    survival: str
    verdict: str
    assumption: str
    gap: str | None
    attacked: bool
    parts: dict[str, int]
    sides: dict[int, Share]
    attacks: list[AttackRow]
    classes: list[ClassRow]
    threat: ThreatPicture | None
    cards: list[Card]
    scale: int
    command: str | None
    replays: list[str]

    @property
    def configuration(self) -> dict[str, Any]:
        return self.summary["configuration"]

    @property
    def growing(self) -> str:
        """The family that `sides` are sizes of."""
        return self.configuration.get("growing", "square")

    def as_json(self) -> str:
        """report.json: shares as in summary.json."""
        return json.dumps(as_json(self), indent=1)


def read_report(run: str | Path | Store) -> Report:
    """The report of a run's folder, finished or not. Raises `InvalidInput` where there is none, or it is damaged."""
    store = Store.of(run)
    configuration = _read(store, "run.json")
    if configuration is None:
        raise InvalidInput(f"run is {store}, which holds no run.json; name an --output of robustpatch attack-vs-cert")
    records = read_records(store)
    if not records:
        raise InvalidInput(f"run is {store}, where no batch is finished yet; repeat the run's command first")
    planned = configuration["num_images"]
    finished = len(records) == planned
    summary = summarise(records)
    around = (_read(store, "summary.json") if finished else None) or {}
    known = around.keys() - vars(summary).keys()
    cards, scale, threat = read_cards(store, records, configuration)
    off = read_deviation(store)
    guards = [card.guard for card in cards if card.guard is not None]
    return Report(
        schema=SCHEMA,
        title=title_of(configuration, len(records)),
        finished=finished,
        images=len(records),
        planned=planned,
        summary={
            **summary.as_dict(),
            **{key: around[key] for key in around if key in known},
            "configuration": configuration,
        },
        survival=survival_text(summary, configuration.get("top_k", 1)),
        verdict=str(verdict_of(summary, configuration.get("top_k", 1))),
        assumption=assumption(summary, configuration, around.get("measured_deviation"), guards, off),
        gap=gap_text(summary.undecided) if summary.undecided is not None and summary.undecided.images else None,
        attacked=bool(summary.attacks),
        parts=_parts(records),
        sides=certified_by_size(records),
        attacks=_attacks(summary, configuration),
        classes=_classes(records, configuration.get("class_names")),
        threat=threat,
        cards=cards,
        scale=scale,
        command=command_of(around.get("command")),
        replays=_replays(store, configuration),
    )


def _read(store: Store, name: str) -> dict[str, Any] | None:
    if not store.exists(name):
        return None
    try:
        return read_object(store.read(name))
    except ValueError as error:
        raise InvalidInput(f"{store.path(name)} is damaged ({error}); repeat the run in another folder") from error


def _parts(records: list[Record]) -> dict[str, int]:
    """A certified image of the wrong class is a wrong one here: the parts are those of accuracy."""
    kinds = [outcome(record) for record in records]
    found = Counter(
        "wrong" if kind == "certified" and not record.correct else kind
        for kind, record in zip(kinds, records, strict=True)
    )
    return {kind: found[kind] for kind in ("certified", "standing", "broken", "wrong", "violated")}


def _attacks(summary: Summary, configuration: dict[str, Any]) -> list[AttackRow]:
    budget = budgets(configuration)
    if len(budget) != len(summary.attacks):
        budget = [None] * len(summary.attacks)
    most = configuration.get("certified_budget") or 0
    return [
        AttackRow(**vars(found), name=name, budget=own, certified_budget=most)
        for (name, found), own in zip(summary.attacks.items(), budget, strict=True)
    ]


def _classes(records: list[Record], names: list[str] | None) -> list[ClassRow]:
    rows = []
    for label in sorted({record.label for record in records}):
        own = [record for record in records if record.label == label]
        summary = summarise(own)
        name = names[label] if names is not None and label < len(names) else str(label)
        under = summary.under_all if any(record.attacks for record in records) else None
        rows.append(ClassRow(name, summary.clean, summary.certified_exact, under))
    return rows


def _replays(store: Store, configuration: dict[str, Any]) -> list[str]:
    names = store.names("counterexamples", ".safetensors")
    return [replay_command(store.path(name), configuration) for name in names]

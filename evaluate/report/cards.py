"""Exhibits and records -> the cards of the gallery, pictures as data URIs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.report.pictures import heat, marked, picture, threat_picture
from evaluate.runs.gallery import SHOWN, Exhibit, ImageOutcome, exhibits_name, read_exhibits
from evaluate.runs.records import Record, open_shard
from evaluate.runs.threat_maps import COVERED, NO_PLACE, PlacementMap
from robustpatch.cli.text import one_line
from robustpatch.storage.store import Store

_ROWS = 6  # classes whose votes a card shows
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VoteRow:
    """One class's votes before the attack and after (None where no patch was proposed), and how many of those before
    are within the guard."""

    name: str
    before: int
    close: int
    after: int | None


@dataclass(frozen=True)
class MapPicture:
    """The vulnerability map under one patch: each placement's worst margin, at the patch's centre there.

    `box` is where it lies: left, top, width, height in % of the image. `open` of `placements` are not certified (None
    where a cell is the least of several).
    """

    threat: str
    picture: str
    box: Box
    worst: int
    best: int
    placements: int
    open: int | None


@dataclass(frozen=True)
class AttackedPicture:
    """The image under the patch that went furthest: the picture, the patches, and where they lie, in % and pixels."""

    picture: str
    patches: list[str]
    boxes: list[Box]
    corners: list[tuple[int, int]]
    threat: str
    attack: str
    by: str | None
    broken: bool
    prediction: str


@dataclass(frozen=True)
class Card:
    """One image of the gallery. Predictions are class names, or "abstains". Votes are of `views` ablations; where
    `sampled`, not those that decide; `other_classes` have some too. `guard` is its certificate's; `file` its name."""

    index: int
    file: str | None
    outcome: ImageOutcome
    size: tuple[int, int]
    label: str
    prediction: str
    correct: bool
    margin: float | None
    largest_certified: int | None
    violations: list[str]
    picture: str
    attacked: AttackedPicture | None
    views: int | None
    sampled: bool
    votes: list[VoteRow]
    other_classes: int
    maps: list[MapPicture]
    guard: float | None


@dataclass(frozen=True)
class ThreatPicture:
    """The alternatives of the threat, each on the image `index`, and the share of the image that each covers."""

    index: int
    pictures: list[str]
    shares: list[float]


def read_cards(
    store: Store, records: Sequence[Record], configuration: dict[str, Any]
) -> tuple[list[Card], int, ThreatPicture | None]:
    """The first `gallery` images of each outcome, by outcome and index; the largest margin of any map, which sets the
    scale of all; and the threat on the first of the images."""
    number = configuration.get("gallery", 0)
    kept: dict[ImageOutcome, list[Exhibit]] = {kind: [] for kind in SHOWN}
    for shard in store.names("records", ".parquet"):  # what has no records yet is not finished
        name = exhibits_name(shard)
        if all(len(some) >= number for some in kept.values()):
            break
        sealed = open_shard(store, shard)
        for exhibit in read_exhibits(sealed.file(name), store.path(name)) if name in sealed.files else []:
            if len(kept[exhibit.outcome]) < number:
                kept[exhibit.outcome].append(exhibit)
    exhibits = [exhibit for some in kept.values() for exhibit in some]
    margins = [one.margins[one.margins != NO_PLACE].astype(int) for e in exhibits for one in e.maps]
    limit = max((int(np.abs(one).max()) for one in margins), default=1)
    by_index, names = {record.index: record for record in records}, configuration.get("class_names")
    cards = [_card(exhibit, by_index[exhibit.index], names, max(1, limit)) for exhibit in exhibits]
    return cards, max(1, limit), next(map(_threat, exhibits), None)


def _threat(exhibit: Exhibit) -> ThreatPicture | None:
    pictures = [threat_picture(exhibit.image, drawn) for drawn in exhibit.drawn]
    shares = [round(float((drawn == COVERED).mean()), 4) for drawn in exhibit.drawn]
    return ThreatPicture(exhibit.index, pictures, shares) if pictures else None


def _card(exhibit: Exhibit, record: Record, names: list[str] | None, limit: int) -> Card:
    attacked, seen, original = exhibit.attacked, None, picture(exhibit.image)
    if attacked is not None:
        shaped = attacked.covered
        original = original if shaped is None else marked(exhibit.image, shaped)
        seen = AttackedPicture(
            picture=picture(attacked.image) if shaped is None else marked(attacked.image, shaped),
            patches=[picture(patch) for patch in attacked.patches],
            boxes=[_box(row, column, attacked.threat, exhibit.size) for row, column in attacked.corners]
            if shaped is None
            else [],
            corners=attacked.corners,
            threat=_size(attacked.threat),
            attack=attacked.attack,
            by=attacked.by,
            broken=attacked.broken,
            prediction=_name(attacked.prediction, names),
        )
    votes, others = _votes(exhibit, record, names)
    return Card(
        index=exhibit.index,
        file=None if record.file is None else one_line(record.file, 200),
        outcome=exhibit.outcome,
        size=exhibit.size,
        label=_name(record.label, names),
        prediction=_name(record.prediction, names),
        correct=record.correct,
        margin=record.margin_exact,
        largest_certified=record.largest_certified,
        violations=record.violations,
        picture=original,
        attacked=seen,
        views=exhibit.views,
        sampled=exhibit.sampled,
        votes=votes,
        other_classes=others,
        maps=[_map(one, exhibit.size, limit) for one in exhibit.maps],
        guard=exhibit.guard,
    )


def _name(label: int, names: list[str] | None) -> str:
    if label < 0:
        return "abstains"
    return names[label] if names is not None and label < len(names) else str(label)


def _size(threat: tuple[int, int]) -> str:
    return f"{threat[0]}×{threat[1]}"


def _box(row: float | int, column: float | int, extent: tuple[int, int], size: tuple[int, int]) -> Box:
    height, width = size
    parts = (column / width, row / height, extent[1] / width, extent[0] / height)
    left, top, wide, high = (round(100 * part, 4) for part in parts)
    return left, top, wide, high


def _map(found: PlacementMap, size: tuple[int, int], limit: int) -> MapPicture:
    down, right = (found.threat[0] - 1) / 2, (found.threat[1] - 1) / 2
    cells = (found.margins.shape[0] * found.step, found.margins.shape[1] * found.step)
    there = found.margins[found.margins != NO_PLACE]
    return MapPicture(
        threat=_size(found.threat),
        picture=heat(found, limit),
        box=_box(down, right, cells, size),
        worst=int(there.min()),
        best=int(there.max()),
        placements=found.shape[0] * found.shape[1] if found.placements is None else found.placements,
        open=int((found.margins < 0).sum()) if found.step == 1 else None,
    )


def _votes(exhibit: Exhibit, record: Record, names: list[str] | None) -> tuple[list[VoteRow], int]:
    """The classes with most votes before or after, the label and both predictions among them, in the classes' order;
    and how many others have some."""
    if exhibit.votes is None or exhibit.close is None:
        return [], 0
    after = None if exhibit.attacked is None else exhibit.attacked.votes
    most = exhibit.votes if after is None else np.maximum(exhibit.votes, after)
    named = {record.label, record.prediction} | ({exhibit.attacked.prediction} if exhibit.attacked else set())
    voted = [k for k in range(len(most)) if most[k] > 0 or k in named]
    chosen = sorted(voted, key=lambda k: (k not in named, -int(most[k]), k))[:_ROWS]
    rows = [
        VoteRow(_name(k, names), int(exhibit.votes[k]), int(exhibit.close[k]), None if after is None else int(after[k]))
        for k in sorted(chosen)
    ]
    return rows, len(voted) - len(chosen)

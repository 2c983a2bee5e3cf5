"""Images to look at: of a few of each outcome, the patch that went furthest, votes before and after, and the map."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from evaluate.runs.records import AttackRecord, Record
from evaluate.runs.threat_maps import MAPS, SIDE, PlacementMap, placement_maps, reduced, threat_drawn
from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_json
from robustpatch.storage.npz import ANY, read_all_arrays
from robustpatch.storage.store import Store
from robustpatch.threats.base import Patches, Threat
from robustpatch.voting.votes import Scored, Votes

ImageOutcome = Literal["violated", "certified", "broken", "standing", "wrong"]
SHOWN: tuple[ImageOutcome, ...] = ("violated", "certified", "broken", "standing", "wrong")
_MOST_BYTES = 2**30  # of all arrays of a file: a thousand images of three channels have a third of that
_KINDS = {"|u1": ANY, "<i2": ANY, "<i4": ANY}
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, BadZipFile, zlib.error, EOFError)


def outcome(record: Record) -> ImageOutcome:
    """The outcome of an image: certified and changed all the same; certified, for whatever class; wrong before any
    attack; broken; or standing, with no proof."""
    if record.violations:
        return "violated"
    if record.certified:
        return "certified"
    if not record.correct:
        return "wrong"
    return "broken" if record.broken else "standing"


@dataclass(frozen=True)
class Attacked:
    """The image under the patch that went furthest, inside the threat: one that broke it, else the one that left the
    smallest lead. `corners` are those of the real image, `patches` what lies there; `prediction` is the judge's.
    `covered` marks the pixels of the picture under the patches, where these are not whole rectangles.
    """

    image: np.ndarray
    patches: np.ndarray
    corners: list[tuple[int, int]]
    threat: tuple[int, int]
    attack: str
    by: str | None
    broken: bool
    prediction: int
    votes: np.ndarray | None
    covered: np.ndarray | None = None


@dataclass(frozen=True)
class Exhibit:
    """One image of a gallery. Pictures are uint8 [C,h,w], large ones made smaller; `size` is the real height × width.

    Votes [K] are counts over `views` ablations of the real images, `close` those within the guard; None of a classifier
    without votes. `sampled`: these are not the votes that decide, but those of ablations sampled for all images alike.
    `drawn` shows each alternative of the threat on the image, pixel by pixel: `COVERED` by its patches at one of their
    placements, `REACHED` by others, or 0.
    """

    index: int
    outcome: ImageOutcome
    size: tuple[int, int]
    image: np.ndarray
    views: int | None
    sampled: bool
    votes: np.ndarray | None
    close: np.ndarray | None
    attacked: Attacked | None
    maps: list[PlacementMap]
    guard: float | None
    drawn: list[np.ndarray] = field(default_factory=list)


class Furthest:
    """Of the patches offered, inside the threat, the one that went furthest on each image. It keeps `none` if asked."""

    def __init__(self, none: bool = False) -> None:
        self.none = none
        self.found: dict[int, tuple[AttackRecord, Tensor]] = {}

    def offer(self, i: int, record: AttackRecord, x_adv: Tensor) -> None:
        """Keep the patch if it broke image i first, or left a smaller lead than those before. An attack that tried no
        placement, or that proposes the clean image, has none to show, but where it broke the image: one that ignores
        the defense tries none on it."""
        tried = record.broken or (record.visited > 0 and record.patches > 0)
        if self.none or not (record.contained and record.in_range and tried):
            return
        if i not in self.found or _standing(record) < _standing(self.found[i][0]):
            self.found[i] = record, x_adv.detach().cpu().clone()


def _standing(record: AttackRecord) -> float:
    if record.broken:
        return float("-inf")
    return float("inf") if record.lead is None else float(record.lead)


def exhibit(
    model: torch.nn.Module,
    x: Tensor,
    records: Sequence[Record],
    certificate: Certificate | None,
    threat: Threat,
    furthest: Furthest,
    quota: int,
) -> list[Exhibit]:
    """The first `quota` images of each outcome, in the order of the images [B,C,H,W]."""
    outcomes: list[ImageOutcome] = [outcome(record) for record in records]
    rows = sorted(i for kind in SHOWN for i in [i for i, found in enumerate(outcomes) if found == kind][:quota])
    if not rows:
        return []
    classifier = as_classifier(model)
    voting, views, counts, close, after = voting_classifier(classifier), None, {}, {}, {}
    if voting is not None:
        if certificate is not None and certificate.evidence is not None:  # those that the certificate is made of
            clean = certificate.evidence.votes.of(torch.tensor(rows))
        else:
            clean = voting.votes(x[rows].clone())
        views = clean.cast.shape[1]
        counts = dict(zip(rows, _whole(clean), strict=True))
        close = dict(zip(rows, clean.close.sum(dim=1, dtype=torch.int32).cpu().numpy(), strict=True))
        attacked = [i for i in rows if i in furthest.found]
        if attacked:
            x_adv = torch.stack([furthest.found[i][1] for i in attacked]).to(x.device)
            after = dict(zip(attacked, _whole(voting.votes(x_adv.clone())), strict=True))
    size = (x.shape[2], x.shape[3])
    drawn = {i: [threat_drawn(one, *size) for one in _there(threat, x[i])[:MAPS]] for i in rows}
    return [
        Exhibit(
            index=records[i].index,
            outcome=outcomes[i],
            size=size,
            image=_picture(x[i]),
            views=views,
            sampled=voting is not None and str(voting.ablation) != classifier.describe()["ablation"],
            votes=counts.get(i),
            close=close.get(i),
            attacked=_attacked(_there(threat, x[i]), *furthest.found[i], after.get(i)) if i in furthest.found else None,
            maps=[] if certificate is None else placement_maps(certificate, i, threat, size),
            guard=None if certificate is None else certificate.guard,
            drawn=drawn[i],
        )
        for i in rows
    ]


def _whole(votes: Votes | Scored) -> np.ndarray:
    """The counts, of summed scores in whole votes, rounded down."""
    return torch.div(votes.counts, votes.unit, rounding_mode="floor").to(torch.int32).cpu().numpy()


def _there(threat: Threat, image: Tensor) -> tuple[Patches, ...]:
    """The alternatives that have a place on the image, as they are there."""
    own = threat.of_image(image)
    return () if own is None else own.threats


def _attacked(threats: Sequence[Patches], record: AttackRecord, x_adv: Tensor, votes: np.ndarray | None) -> Attacked:
    (one,) = (each for each in threats if str(each) == record.threat)
    height, width = one.height, one.width
    # Boxes of the largest patch, a smaller one's moved where they would reach beyond the image.
    last = torch.tensor([x_adv.shape[1] - height, x_adv.shape[2] - width])
    families = one.families(x_adv.shape[1], x_adv.shape[2])
    anchors = torch.tensor(record.corners).view(-1, 2)
    each = zip(families, anchors, strict=True)
    corners = [tuple(torch.minimum(family.corners(anchor), last).tolist()) for family, anchor in each]
    patches = np.stack([_picture(x_adv[:, r : r + height, c : c + width]) for r, c in corners])
    what = (record.attack, record.by, record.broken, record.prediction)
    covered = None
    if any(own.rectangle is None for own in families) or len(set(families)) > 1:
        covered = reduced(one.footprint(anchors[None], x_adv.shape[1], x_adv.shape[2])[0].byte())
    return Attacked(_picture(x_adv), patches, corners, (height, width), *what, votes, covered)


def _picture(image: Tensor) -> np.ndarray:
    """The image [C,H,W] in 8 bits, averaged down to at most `SIDE` pixels a side."""
    image, (height, width) = image.detach().float().cpu(), image.shape[1:]
    factor = -(-max(height, width) // SIDE)
    if factor > 1:
        image = adaptive_avg_pool2d(image[None], (-(-height // factor), -(-width // factor)))[0]
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def exhibits_name(shard: str) -> str:
    """The file with the exhibits of the images of a shard of records."""
    return shard.replace("records/", "exhibits/").replace(".parquet", ".npz")


def write_exhibits(output: str | Path | Store, name: str, exhibits: Sequence[Exhibit]) -> bool:
    """Write them, and say so; equal exhibits give equal files. Nothing is written where there are none."""
    if not exhibits:
        return False
    arrays: dict[str, np.ndarray] = {}
    notes = [_pack(exhibit, arrays) for exhibit in exhibits]
    content = BytesIO()
    text = np.frombuffer(json.dumps(notes).encode(), np.uint8)
    np.savez_compressed(content, allow_pickle=False, notes=text, **arrays)
    Store.of(output).write(name, content.getvalue())
    return True


def read_exhibits(content: bytes, name: str) -> list[Exhibit]:
    """The exhibits of one file, which messages call `name`. Raises `InvalidInput` where it holds none, or so much that
    it would take more than `_MOST_BYTES` of memory.
    """
    try:
        arrays = read_all_arrays(content, _KINDS, _MOST_BYTES)
        return [_exhibit(note, arrays) for note in read_json(arrays["notes"].tobytes())]
    except _DAMAGED as error:
        raise InvalidInput(
            f"exhibits {name} are damaged ({one_line(error, 200)}); repeat the run's command, which makes them again"
        ) from error


def _pack(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """A dataclass as JSON types; its arrays are put into `arrays`, their places taken by their names."""
    if isinstance(value, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = value
        return name
    if isinstance(value, list):
        return [_pack(one, arrays) for one in value]
    return {key: _pack(one, arrays) for key, one in vars(value).items()} if is_dataclass(value) else value


def _exhibit(note: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Exhibit:
    def unpack(kind: type, fields: dict[str, Any]) -> Any:
        given = dict(fields)
        for key in _ARRAYS & given.keys():
            given[key] = None if given[key] is None else arrays[given[key]]
        for key in _PAIRS & given.keys():
            given[key] = tuple(given[key])
        if "drawn" in given:
            given["drawn"] = [arrays[name] for name in given["drawn"]]
        return kind(**given)

    attacked = note["attacked"]
    if attacked is not None:
        attacked = unpack(Attacked, attacked | {"corners": [tuple(corner) for corner in attacked["corners"]]})
    return unpack(Exhibit, note | {"attacked": attacked, "maps": [unpack(PlacementMap, one) for one in note["maps"]]})


_ARRAYS = {"image", "patches", "votes", "close", "margins", "covered"}
_PAIRS = {"size", "threat", "shape"}

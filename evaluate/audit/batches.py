"""Several images at once: what is said of one must not depend on its companions, its place or what was asked before."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.audit.finding import Finding
from evaluate.audit.harness import Stand
from evaluate.audit.interface import Misshapen, Refused
from evaluate.audit.tables import Key, Row, vote
from evaluate.audit.trial import Table, Tally, packed, unpacked
from robustpatch.threats.base import Patches

SIZES = (
    1,
    1,
    2,
    3,
    0,
    4,
    5,
    7,
    8,
    9,
    16,
    17,
    31,
    33,
    64,
    65,
    100,
    129,
    257,
)  # around what batches are likely to be cut into
_LEAST = 3 * sum(SIZES[:10]) + 1  # batches of up to nine images, however small the budget
_PAIRS = 12  # clean images, each of which is also there patched


@dataclass(frozen=True)
class Said:
    """The answers of `predict` and `certify` for a batch of images."""

    prediction: Int[Tensor, " B"]
    claimed: Int[Tensor, " B"]
    certified: Tensor


def try_batches(stand: Stand, threat: Patches, budget: int, seed: int, tally: Tally) -> None:
    """Ask about images alone, then about batches of many sizes in which they come with others, clean and patched.

    Every image is dictated its own votes: clear ones and close ones, for different classes. About `budget` views are
    shown. What is found is added to `tally`. Raises `Refused` where the certifier does not know this threat.
    """
    if stand.varies(threat) or stand.subject.random:
        return
    stand.subject.certify(stand.x, threat)
    for rival in (stand.classes - 1, 0):
        if any(one.check == "batches" and one.severity == "broken certificate" for one in tally.findings):
            return
        _try(stand, threat, budget // 2, random.Random(seed), rival, tally)


def _try(stand: Stand, threat: Patches, budget: int, rng: random.Random, rival: int, tally: Tally) -> None:
    """Batches in which every patched view votes for `rival`."""
    images, origin = _images(stand, threat, rng)
    table = _table(stand, threat, images[: len(images) // 2], rival, rng)
    alone = _alone(stand, threat, images, table)
    if not _same(alone, _alone(stand, threat, images, table)):
        return  # ties go by chance, which is found elsewhere
    _new(stand, table)  # what it keeps from batch to batch is part of the test
    first: Finding | None = None
    left, history = max(budget, _LEAST * sum(stand.shown.values())), list[list[int]]()
    try:
        for size in SIZES:
            rows = _drawn(len(images), size, rng)
            left -= 3 * size * sum(stand.shown.values())
            if left < 0 or (first is not None and first.severity == "broken certificate"):
                return
            tally.ballots += 1
            tally.certified += int(alone.certified[rows].sum())
            try:
                found = _compare(stand, threat, images, origin, rows, alone)
            except Misshapen as wrong:
                found = Finding("batches", "inconsistent", f"of a batch of {size} images {wrong}")
            except Refused as refusal:
                if not size:  # an empty batch may fail
                    tally.refused[f"a batch without any image fails: {refusal}"] += 1
                    _new(stand, table)
                    history.clear()
                    continue
                shape = "x".join(map(str, stand.shape))
                what = f"a batch of {size} images ({shape}) fails, but not each alone: {refusal}"
                found = Finding("batches", "warning", what)
            history.append(rows)
            if found is not None and found.severity == "warning":
                tally.findings.append(_saved(stand, threat, found, images, origin, history, table))
                return
            if found is not None and (first is None or found.severity == "broken certificate"):
                first = _saved(stand, threat, found, images, origin, history, table)
    finally:  # also when the audit is stopped
        tally.findings += [] if first is None else [first]


def _new(stand: Stand, table: Table) -> None:
    stand.subject, stand.base = stand.made()
    stand.base.say(table.said, table.others)


def _images(stand: Stand, threat: Patches, rng: random.Random) -> tuple[Float[Tensor, "M C H W"], list[int]]:
    """Images of noise, then each with a patch at a random place; and which image each was before it was patched."""
    generator = torch.Generator().manual_seed(rng.randrange(2**62))
    clean = torch.randint(9, 56, (_PAIRS, *stand.shape), generator=generator).float() / 64
    places = threat.placements(*stand.shape[1:])
    corners = places[torch.randint(len(places), (_PAIRS, threat.count), generator=generator)]
    inside = threat.footprint(corners, *stand.shape[1:])[:, None]
    patched = torch.where(inside, clean + torch.where(clean < 0.5, 0.5, -0.5) * 0.75, clean)
    return torch.cat([clean, patched]), [*range(_PAIRS), *range(_PAIRS)]


def _table(stand: Stand, threat: Patches, clean: Tensor, rival: int, rng: random.Random) -> Table:
    """Image i votes for class i mod K: with all views, or all but up to half, which vote for the rival, as the patched
    views do. Every class has clear votes and close ones.
    """
    said: dict[Key, Row] = {}
    k = stand.classes
    for i in range(len(clean)):
        keys = list(stand.views(clean[i : i + 1]))
        more = [key for key in stand.views(clean[i : i + 1], threat) if key not in set(keys)]
        for key in more:
            said.setdefault(key, vote(k, (i % k,)))
        share = (0.0, 0.2, 0.3, 0.45)[(i + i // k) % 4]
        for key in keys:
            said.setdefault(key, vote(k, (rival if rng.random() < share else i % k,)))
    return Table(said, vote(k, (rival,)))


def _alone(stand: Stand, threat: Patches, images: Tensor, table: Table) -> Said:
    """Asks a new certifier about each image."""
    said = []
    for i in range(len(images)):
        _new(stand, table)
        said.append(_asked(stand, threat, images[i : i + 1], images[i : i + 1]))
    return _joined(said)


def _asked(stand: Stand, threat: Patches, x: Tensor, between: Tensor) -> Said:
    """Asks `predict` about x, then about other images, then `certify` about x."""
    prediction = stand.subject.predict(x)
    stand.subject.predict(between)
    claim = stand.subject.certify(x, threat)
    return Said(prediction, claim.prediction, claim.certified)


def _joined(said: list[Said]) -> Said:
    return Said(*(torch.cat([getattr(one, name) for one in said]) for name in ("prediction", "claimed", "certified")))


def _same(one: Said, other: Said) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def _drawn(number: int, size: int, rng: random.Random) -> list[int]:
    """`size` of the images in random order, all of them before any comes twice."""
    rows: list[int] = []
    while len(rows) < size:
        rows += rng.sample(range(number), number)
    return rows[:size]


def _compare(
    stand: Stand, threat: Patches, images: Tensor, origin: list[int], rows: list[int], alone: Said
) -> Finding | None:
    """Compares the answers for a batch with those for its images alone; returns a finding, or None where they agree."""
    together = _asked(stand, threat, images[rows], images[rows[::-1]])
    subject = stand.subject
    truth = Said(*(getattr(alone, name)[rows] for name in ("prediction", "claimed", "certified")))
    if _same(together, truth):
        return None
    differs = (together.prediction != truth.prediction) | (together.claimed != truth.claimed)
    differs |= together.certified != truth.certified
    # Of a certified image, and of its patched copy, every answer of predict has to be the class that was claimed.
    clean = torch.tensor([origin[row] for row in rows], dtype=torch.long)
    promised = alone.certified[clean] & (alone.claimed[clean] >= 0)
    broken = promised & subject.changed(together.prediction, alone.claimed[clean])
    # Of an image that is certified in the batch, so has every answer about it, and about its patched copy, alone.
    copy = clean + len(images) // 2
    other = subject.changed(truth.prediction, together.claimed)
    other |= subject.changed(alone.prediction[copy], together.claimed) & (clean == torch.tensor(rows, dtype=torch.long))
    mine = together.certified & (together.claimed >= 0) & other
    wrong = (broken | mine) & differs
    worst = wrong.nonzero()[:, 0].tolist() or differs.nonzero()[:, 0].tolist()
    n, size = worst[0], len(rows)
    said = "; ".join(
        f"{what} says {_text(together, n, what)} of it in the batch and {_text(truth, n, what)} of it alone"
        for what in ("predict", "certify")
        if _text(together, n, what) != _text(truth, n, what)
    )
    which = "a patched image" if rows[n] >= len(images) // 2 else "an image"
    sentence = f"{which}, number {n} in a batch of {size} ({'x'.join(map(str, stand.shape))}, {threat} patch): {said}"
    if bool(wrong.any()):
        sentence += "; a certificate that it was given does not hold there"
    severity = "broken certificate" if bool(wrong.any()) else "inconsistent"
    return Finding("batches", severity, sentence)


def _saved(
    stand: Stand,
    threat: Patches,
    found: Finding,
    images: Tensor,
    origin: list[int],
    history: list[list[int]],
    table: Table,
) -> Finding:
    """The finding with all that was asked until then."""
    note: dict[str, Any] = {
        "kind": "batches",
        "threat": threat.to_dict(),
        "classes": stand.classes,
        "alerts": stand.alerts,
        "origin": origin,
        "history": [list(some) for some in history],
    }
    return replace(found, tensors={"x": images, **packed(table)}, note=note)


def _text(said: Said, n: int, what: str) -> str:
    if what == "predict":
        return str(int(said.prediction[n]))
    return f"{int(said.claimed[n])} ({'certified' if bool(said.certified[n]) else 'not certified'})"


def batch_shows_again(stand: Stand, threat: Patches, tensors: dict[str, Tensor], note: dict[str, Any]) -> bool:
    """Tells whether the saved batch still gets other answers than its images alone."""
    images, table = tensors["x"], unpacked(tensors)
    alone = _alone(stand, threat, images, table)
    _new(stand, table)
    for rows in note["history"]:
        try:
            found = _compare(stand, threat, images, note["origin"], rows, alone)
        except Misshapen:
            return True
        except Refused:
            return note["severity"] == "warning" and rows is note["history"][-1]
        if found is not None:
            return True
    return False

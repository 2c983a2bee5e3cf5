"""One trial: answers are dictated, a certificate is asked for, and where there is one, the patched image is shown."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from evaluate.audit.finding import Finding
from evaluate.audit.harness import Site, Stand
from evaluate.audit.interface import Claim, Refused
from evaluate.audit.limit import Stopped
from evaluate.audit.tables import SCALE, Key, Row
from robustpatch.threats.base import Patches

_AGAIN = 4  # times that a tie is asked about before the certifier is believed to break it always alike


@dataclass(frozen=True, eq=False)
class Table:
    """The answers of a base: for each view that it knows the numbers in `said`, for every other view `others`."""

    said: dict[Key, Row]
    others: Row


@dataclass
class Tally:
    """The counts of a number of trials."""

    findings: list[Finding] = field(default_factory=list)
    ballots: int = 0
    certified: int = 0
    touched: tuple[int, int] = (0, 0)
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Count another's trials too."""
        self.findings += other.findings
        self.ballots, self.certified = self.ballots + other.ballots, self.certified + other.certified
        self.refused.update(other.refused)


@dataclass(frozen=True, eq=False)
class Fall:
    """A certified prediction that was seen to change, on two certifiers made one after the other.

    `prediction`: of the attacked image; of the clean one where `patched` is not set. `by_chance`: whether the same
    image with the same answers was also predicted otherwise; then `asks` is how often it had to be asked about.
    """

    table: Table
    site: Site
    claim: Claim
    prediction: int
    patched: bool
    by_chance: bool = False
    asks: int = 1


def tried(
    stand: Stand, threat: Patches, table: Table, site: Site, tally: Tally, asks: int = 1
) -> tuple[bool, Fall | None]:
    """Returns whether the clean image was certified, and the fall that broke the certificate; a break must be seen
    twice.

    `asks`: how often each image is shown to `predict`. Answers that the certifier refuses are counted in `tally`.
    """
    tally.ballots += 1
    stand.say(table.said, table.others)
    try:
        claim = stand.subject.certify(stand.x, threat)
        if not bool(claim.certified[0]) or int(claim.prediction[0]) < 0:
            return False, None
        tally.certified += 1
        if seen(stand, claim, site, asks) is None:
            return True, None
        return True, confirmed(stand, threat, table, site, asks)
    except Refused as refusal:
        tally.refused[str(refusal)] += 1
        return False, None


def confirmed(stand: Stand, threat: Patches, table: Table, site: Site, asks: int = 1) -> Fall | None:
    """The same with a new certifier, which keeps nothing of other votes. Raises `Refused`."""
    subject, stand.base = stand.made()
    stand.subject = subject
    stand.base.say(table.said, table.others)
    claim = subject.certify(stand.x, threat)
    if not bool(claim.certified[0]) or int(claim.prediction[0]) < 0:
        return None
    found = seen(stand, claim, site, asks)
    if found is None:
        return None
    patched, prediction = found
    x = site.x_adv if patched else stand.x
    again = [int(subject.predict(x)) for _ in range(_AGAIN)]
    chance = any(answer != prediction for answer in again)
    return Fall(table, site, claim, prediction, patched, chance, max(asks, 4 * _AGAIN if chance else 1))


def seen(stand: Stand, claim: Claim, site: Site, asks: int = 1) -> tuple[bool, int] | None:
    """Finds an image whose prediction contradicts the claim: (is it the patched one, its prediction), or None."""
    y = int(claim.prediction[0])
    for patched, x in ((False, stand.x), (True, site.x_adv)):
        for _ in range(asks):
            prediction = stand.subject.predict(x)
            if bool(stand.subject.changed(prediction, y)[0]):
                return patched, int(prediction)
    return None


def spoken(stand: Stand, keys: Counter[Key] | dict[Key, int], rows: dict[Key, Row], others: Row) -> str:
    """Puts the answers of views into words: "class 0 by 25, class 1 by 10, nothing by 2, class 2 at 0.7 by 1"."""
    counts: Counter[str] = Counter()
    for key, number in keys.items():
        counts[_text(rows.get(key, others))] += number
    return ", ".join(f"{what} by {number}" for what, number in counts.most_common(6)) + (
        f" and {len(counts) - 6} other answers" if len(counts) > 6 else ""
    )


def _text(row: Row) -> str:
    best, least = max(row), min(row)
    classes = [k for k, value in enumerate(row) if value == best]
    if best == least:
        return "nothing"
    name = "class " + " and ".join(map(str, classes))
    if set(row) == {SCALE, -SCALE}:
        return name
    return f"{name} at {best:g} against {sorted(row)[-1 - len(classes)]:g}"


def finding(stand: Stand, threat: Patches, fall: Fall, check: str, cause: str = "", times: int = 1) -> Finding:
    """The fall as a finding that says what was seen, then the `cause`, where one was shown."""
    claimed, table = int(fall.claim.prediction[0]), fall.table
    shape = "x".join(map(str, stand.shape))
    text = (
        f"answers of the views of an image ({shape}), {spoken(stand, stand.shown, table.said, table.others)}, were "
        f"certified for class {claimed} against {threat}"
    )
    now = f"the prediction is {fall.prediction}"
    if fall.patched:
        other = differing(stand, fall)
        at = ", ".join(str(tuple(corner)) for corner in fall.site.corners.tolist())
        text += f"; with a patch at {at}, "
        if other:
            text += f"{sum(other.values())} views differ, which answer "
            text += f"{spoken(stand, other, table.said, table.others)}, and "
        text += now
    else:
        text += f", but without any patch {now.replace('the prediction is', 'predict says')}"
    if fall.by_chance:
        text += "; asked again about the same image and answers, predict says something else"
    note = {
        "kind": "votes",
        "threat": threat.to_dict(),
        "classes": stand.classes,
        "alerts": stand.alerts,
        "prediction": claimed,
        "patched": fall.patched,
        "asks": fall.asks,
    }
    sentence = f"{text}: {cause}" if cause else text
    return Finding(check, "broken certificate", sentence, tensors(stand, threat, fall), note, times)


def differing(stand: Stand, fall: Fall) -> dict[Key, int]:
    """The views that the patched image shows and the clean one does not; none once the audit is stopped."""
    shown: Counter[Key] = Counter()
    with suppress(Refused, Stopped):
        stand.say(fall.table.said, fall.table.others)
        with stand.base.recording() as recorded:
            stand.subject.predict(fall.site.x_adv)
        shown = recorded
    return {key: number for key, number in shown.items() if key not in stand.shown}


def tensors(stand: Stand, threat: Patches, fall: Fall) -> dict[str, Tensor]:
    """The images and the table; `shows_again` asks about them again."""
    corners = fall.site.corners.reshape(threat.count, 2)
    return {"x": stand.x[0], "x_adv": fall.site.x_adv[0], "corners": corners, **packed(fall.table)}


def packed(table: Table) -> dict[str, Tensor]:
    """The table as tensors: keys [N,16], and answers [N+1,K], of which the first is that of all other views."""
    keys = torch.frombuffer(bytearray(b"".join(table.said)), dtype=torch.uint8).reshape(len(table.said), -1)
    return {"keys": keys, "answers": torch.tensor([table.others, *table.said.values()], dtype=torch.float32)}


def unpacked(tensors: dict[str, Tensor]) -> Table:
    """The table that `packed` made tensors of."""
    others, *rest = [tuple(row) for row in tensors["answers"].tolist()]
    return Table(dict(zip([bytes(row) for row in tensors["keys"].tolist()], rest, strict=True)), others)


def shows_again(stand: Stand, threat: Patches, tensors: dict[str, Tensor], note: dict[str, Any]) -> bool:
    """Tells whether a certificate of these answers is broken by that patch, or contradicted without any."""
    table, x_adv, corners = unpacked(tensors), tensors["x_adv"][None], tensors["corners"]
    outside = ~threat.footprint(corners[None], *stand.shape[1:])[0]
    if bool(((x_adv != stand.x)[0] & outside).any()) or not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        return False
    site = Site(corners, x_adv, set(), 0)
    try:
        return confirmed(stand, threat, table, site, max(1, note.get("asks", 1))) is not None
    except Refused:
        return False


def pixels(stand: Stand) -> int:
    """Returns the least number of values that the base is shown of one image."""
    return sum(stand.shown.values()) * prod(stand.shape)

"""A search for a base, an image and a patch that overturn a certificate, which knows nothing of the audit.

A base may be any function of its input. So it is drawn at random, answer by answer as it is asked, and remembers what
it said: first for the views of the clean image, and then, as a patch would have it, for those that it has not seen yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from robustpatch.threats.rectangle import PatchThreat


class Told(nn.Module):
    """Says what it said before of an equal view, and otherwise what `draw` gives: K logits."""

    def __init__(self, said: dict[bytes, np.ndarray], draw: Callable[[], np.ndarray]) -> None:
        super().__init__()
        self.said, self.draw = said, draw

    def forward(self, views):
        rows = np.asarray(views, dtype=np.float32).reshape(len(views), -1) + np.float32(0)
        for row in rows:
            if row.tobytes() not in self.said:
                self.said[row.tobytes()] = np.asarray(self.draw(), dtype=np.float32)
        return torch.from_numpy(np.stack([self.said[row.tobytes()] for row in rows]))


@dataclass(frozen=True)
class Place:
    """Where a certifier is tried: images small enough to look at all places of the patch."""

    shape: tuple[int, int, int]
    threat: PatchThreat
    classes: int = 3
    scale: tuple[float, ...] = (4.0,)  # logits of the class that a view of the clean image is for
    patched: tuple[float, ...] = (4.0,)  # and that a view which a patch changes is for
    alerts: bool = False
    rounds: int = 400
    company: int = 0  # other images in the batch that is certified
    seed: int = 0


@dataclass(frozen=True)
class Counterexample:
    """`x` is certified for class `prediction`, in a batch with the others; alone and patched it is `predicted`."""

    said: dict[bytes, np.ndarray] = field(repr=False)
    batch: Tensor
    x_adv: Tensor
    prediction: int
    predicted: int


def counterexample(make, place: Place, patch: bool = True) -> Counterexample | None:
    """The first found; `patch` False: predictions of the clean image alone, against what was certified."""
    rng = np.random.default_rng(place.seed)
    for _ in range(place.rounds):
        images = rng.integers(9, 56, (1 + place.company, *place.shape)) / 64
        batch = torch.from_numpy(images).float()
        c, share = int(rng.integers(place.classes)), rng.random()
        said: dict[bytes, np.ndarray] = {}
        certifier = make(Told(said, _drawn(rng, place.classes, c, share, place.scale)), place.classes, place.shape)
        claim = certifier.certify(batch.clone(), place.threat)
        if not bool(claim.certified[-1]):
            continue
        prediction = int(claim.prediction[-1])
        known = dict(said)
        for x_adv in _patched(batch[-1:], place.threat) if patch else [batch[-1:]]:
            said = dict(known)
            base = Told(said, _drawn(rng, place.classes, prediction, rng.choice([0, 0, rng.random()]), place.patched))
            predicted = int(make(base, place.classes, place.shape).predict(x_adv.clone())[0])
            if predicted != prediction and not (predicted == -1 and place.alerts):
                return Counterexample(said, batch, x_adv, prediction, predicted)
    return None


def holds_up(found: Counterexample, make, place: Place) -> bool:
    """Whether it is one: certified by a new certifier around a base that now only repeats itself, the patch within the
    threat, and another prediction.
    """
    base = Told(dict(found.said), _nothing_new)
    claim = make(base, place.classes, place.shape).certify(found.batch.clone(), place.threat)
    predicted = int(make(base, place.classes, place.shape).predict(found.x_adv.clone())[0])
    rows, columns = (found.x_adv != found.batch[-1:]).any(dim=1)[0].nonzero().unbind(dim=1)
    inside = not len(rows) or (
        int(rows.max() - rows.min()) < place.threat.height and int(columns.max() - columns.min()) < place.threat.width
    )
    overturned = predicted == found.predicted != int(claim.prediction[-1])
    return inside and bool(claim.certified[-1]) and overturned and not (place.alerts and predicted == -1)


def _patched(x: Tensor, threat: PatchThreat) -> Iterator[Tensor]:
    """The image with every pixel of the patch changed, at every place."""
    for top, left in threat.placements(*x.shape[2:]).tolist():
        window = (..., slice(top, top + threat.height), slice(left, left + threat.width))
        x_adv = x.clone()
        x_adv[window] = torch.where(x[window] < 0.5, x[window] + 0.375, x[window] - 0.375)
        yield x_adv


def _drawn(rng: np.random.Generator, classes: int, c: int, share: float, scale) -> Callable[[], np.ndarray]:
    """Logits of one large class: c with probability `share`, else another one, half of the time always the same."""
    others = [k for k in range(classes) if k != c]
    rival = [int(rng.choice(others))] if rng.random() < 0.5 else others

    def draw() -> np.ndarray:
        k = c if rng.random() < share else int(rng.choice(rival))
        return np.where(np.arange(classes) == k, rng.choice(scale), -4.0)

    return draw


def _nothing_new() -> np.ndarray:
    raise AssertionError("the base is asked of a view that it was not asked of when the counterexample was found")

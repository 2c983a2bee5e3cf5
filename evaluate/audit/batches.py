"""Several images at once: what is said of one must not depend on the others, its place or what was asked before."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.audit.certifier import Misshapen, Refused
from evaluate.audit.dictated_base import Answers, Key, Logits, vote
from evaluate.audit.finding import Finding, Severity, Tally
from evaluate.audit.harness import Harness, noise, repainted
from robustpatch.threats.base import Patches

SIZES = (1, 1, 2, 3, 0, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64, 65, 100, 129, 257)  # around sizes that batches are cut into
_LEAST = 3 * sum(SIZES[:10]) + 1  # batches of up to nine images, however small the budget
_PAIRS = 12  # clean images, each of which is also there patched
_PREDICTED, _CLAIMED, _CERTIFIED = range(3)  # columns of what is said of images: `predict`, and the two of `certify`


@dataclass(frozen=True)
class Batches:
    """The images that batches are made of, and the answers dictated for them. What is said of images is a row of three
    numbers for each.

    `images`: clean ones, then each with a patch; `origin`: the number of the clean image of each. `history`: the
    batches asked about so far, as numbers of images.
    """

    harness: Harness
    threat: Patches
    images: Float[Tensor, "M C H W"]
    origin: list[int]
    answers: Answers
    history: list[list[int]] = field(default_factory=list)

    def alone(self) -> Int[Tensor, "M 3"]:
        """The answers of a new certifier for each image."""
        said = []
        for image in self.images.split(1):
            self.harness.renew(self.answers)
            said.append(self._asked(image, image))
        return torch.cat(said)

    def _asked(self, x: Tensor, between: Tensor) -> Int[Tensor, "B 3"]:
        """Asks `predict` about x, then about other images, then `certify` about x."""
        subject = self.harness.subject
        prediction = subject.predict(x)
        subject.predict(between)
        claim = subject.certify(x, self.threat)
        return torch.stack([prediction, claim.prediction, claim.certified.long()], dim=1)

    def compare(self, rows: list[int], alone: Int[Tensor, "M 3"]) -> Finding | None:
        """A finding where the answers for a batch differ from those for its images alone."""
        together, truth = self._asked(self.images[rows], self.images[rows[::-1]]), alone[rows]
        if torch.equal(together, truth):
            return None
        subject, numbers = self.harness.subject, torch.tensor(rows, dtype=torch.long)
        differs = (together != truth).any(dim=1)
        # Of a certified image, and of its patched copy, every answer of predict has to be the class that was claimed.
        clean = torch.tensor(self.origin)[numbers]
        promised = (alone[clean, _CERTIFIED] > 0) & (alone[clean, _CLAIMED] >= 0)
        broken = promised & subject.changed(together[:, _PREDICTED], alone[clean, _CLAIMED])
        # Of an image that is certified in the batch, so has every answer about it, and about its patched copy, alone.
        copied = alone[clean + len(self.images) // 2, _PREDICTED]
        other = subject.changed(truth[:, _PREDICTED], together[:, _CLAIMED])
        other |= subject.changed(copied, together[:, _CLAIMED]) & (clean == numbers)
        mine = (together[:, _CERTIFIED] > 0) & (together[:, _CLAIMED] >= 0) & other
        wrong = (broken | mine) & differs
        n = (wrong.nonzero()[:, 0].tolist() or differs.nonzero()[:, 0].tolist())[0]
        pairs = [(name, _text(together[n], name), _text(truth[n], name)) for name in ("predict", "certify")]
        said = "; ".join(
            f"{name} says {here} of it in the batch and {there} of it alone"
            for name, here, there in pairs
            if here != there
        )
        which = "a patched image" if rows[n] >= len(self.images) // 2 else "an image"
        shape = "x".join(map(str, self.harness.shape))
        sentence = f"{which}, number {n} in a batch of {len(rows)} ({shape}, {self.threat} patch): {said}"
        if bool(wrong.any()):
            sentence += "; a certificate that it was given does not hold there"
        severity: Severity = "broken certificate" if bool(wrong.any()) else "inconsistent"
        return Finding("batches", severity, sentence)

    def saved(self, found: Finding) -> Finding:
        """The finding with all that was asked until then."""
        note = {
            "kind": "batches",
            "threat": self.threat.to_dict(),
            "classes": self.harness.classes,
            "alerts": self.harness.alerts,
            "origin": self.origin,
            "history": [list(some) for some in self.history],
        }
        return replace(found, tensors={"x": self.images, **self.answers.tensors()}, note=note)


def try_batches(harness: Harness, threat: Patches, budget: int, seed: int, tally: Tally) -> None:
    """Ask about images alone, then about batches of many sizes in which they come with others, clean and patched.

    Every image is dictated its own votes: clear ones and close ones, for different classes. About `budget` views are
    shown. What is found is added to `tally`. Raises `Refused` where the certifier does not know this threat.
    """
    if harness.varies(threat) or harness.subject.random:
        return
    harness.subject.certify(harness.x, threat)
    for rival in (harness.classes - 1, 0):
        if any(one.check == "batches" and one.severity == "broken certificate" for one in tally.findings):
            return
        rng = random.Random(seed)
        images, origin = _images(harness, threat, rng)
        answers = _answers(harness, threat, images[: len(images) // 2], rival, rng)
        _try(Batches(harness, threat, images, origin, answers), budget // 2, rng, tally)


def _try(batches: Batches, budget: int, rng: random.Random, tally: Tally) -> None:
    harness, history = batches.harness, batches.history
    alone = batches.alone()
    if not torch.equal(alone, batches.alone()):
        return  # ties go by chance, which is found elsewhere
    harness.renew(batches.answers)  # what it keeps from batch to batch is part of the test
    first: Finding | None = None
    left = max(budget, _LEAST * harness.total)
    try:
        for size in SIZES:
            rows = _drawn(len(batches.images), size, rng)
            left -= 3 * size * harness.total
            if left < 0 or (first is not None and first.severity == "broken certificate"):
                return
            certified = int(alone[rows, _CERTIFIED].sum())
            tally.ballots, tally.certified = tally.ballots + 1, tally.certified + certified
            tally.attacked += certified
            try:
                found = batches.compare(rows, alone)
            except Misshapen as wrong:
                found = Finding("batches", "inconsistent", f"of a batch of {size} images {wrong}")
            except Refused as refusal:
                if not size:  # an empty batch may fail
                    tally.refused[f"a batch without any image fails: {refusal}"] += 1
                    harness.renew(batches.answers)
                    history.clear()
                    continue
                shape = "x".join(map(str, harness.shape))
                what = f"a batch of {size} images ({shape}) fails, but not each alone: {refusal}"
                found = Finding("batches", "warning", what)
            history.append(rows)
            if found is not None and found.severity == "warning":
                tally.findings.append(batches.saved(found))
                return
            if found is not None and (first is None or found.severity == "broken certificate"):
                first = batches.saved(found)
    finally:  # also when the audit is stopped
        tally.findings += [] if first is None else [first]


def _images(harness: Harness, threat: Patches, rng: random.Random) -> tuple[Float[Tensor, "M C H W"], list[int]]:
    """Images of noise, then each with a patch at a random place; and which image each was before it was patched."""
    generator = torch.Generator().manual_seed(rng.randrange(2**62))
    clean = noise(_PAIRS, harness.shape, generator)
    places = threat.placements(*harness.shape[1:])
    corners = places[torch.randint(len(places), (_PAIRS, threat.count), generator=generator)]
    patched = repainted(clean, threat.footprint(corners, *harness.shape[1:]))
    return torch.cat([clean, patched]), [*range(_PAIRS), *range(_PAIRS)]


def _answers(harness: Harness, threat: Patches, clean: Tensor, rival: int, rng: random.Random) -> Answers:
    """Image i votes for class i mod K: with all views, or all but up to half, which vote for the rival, as the patched
    views do. Every class has clear votes and close ones.
    """
    by_view: dict[Key, Logits] = {}
    k = harness.classes
    for i in range(len(clean)):
        keys = list(harness.views(clean[i : i + 1]))
        more = [key for key in harness.views(clean[i : i + 1], threat) if key not in set(keys)]
        for key in more:
            by_view.setdefault(key, vote(k, (i % k,)))
        share = (0.0, 0.2, 0.3, 0.45)[(i + i // k) % 4]
        for key in keys:
            by_view.setdefault(key, vote(k, (rival if rng.random() < share else i % k,)))
    return Answers(by_view, vote(k, (rival,)))


def _drawn(number: int, size: int, rng: random.Random) -> list[int]:
    """`size` of the images in random order, all of them before any comes twice."""
    rows: list[int] = []
    while len(rows) < size:
        rows += rng.sample(range(number), number)
    return rows[:size]


def _text(said: Int[Tensor, " 3"], name: str) -> str:
    prediction, claimed, certified = said.tolist()
    return str(prediction) if name == "predict" else f"{claimed} ({'certified' if certified else 'not certified'})"


def batch_shows_again(harness: Harness, threat: Patches, tensors: dict[str, Tensor], note: dict[str, Any]) -> bool:
    """Tells whether the saved batch still gets other answers than its images alone."""
    batches = Batches(harness, threat, tensors["x"], note["origin"], Answers.of(tensors))
    alone = batches.alone()
    harness.renew(batches.answers)
    for rows in note["history"]:
        try:
            found = batches.compare(rows, alone)
        except Misshapen:
            return True
        except Refused:
            return note["severity"] == "warning" and rows is note["history"][-1]
        if found is not None:
            return True
    return False

"""One attack by dictated answers: a certificate is asked for, and where there is one, the patched image is shown."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from evaluate.audit.certifier import Claim, Refused
from evaluate.audit.dictated_base import SCALE, Answers, Key, Logits, vote
from evaluate.audit.finding import Finding, Tally
from evaluate.audit.harness import Harness, Site
from evaluate.audit.stopping import Stopped
from evaluate.audit.vote_patterns import Ballot
from robustpatch.threats.base import Patches

_ASKS = 4  # how often predict is asked about equal votes before it is believed to settle them always alike


@dataclass(frozen=True, eq=False)
class Break:
    """A certified prediction that was seen to change, on two certifiers made one after the other.

    `prediction`: of the attacked image; of the clean one where `patched` is not set. `by_chance`: whether the same
    image with the same answers was also predicted otherwise; then `asks` is how often it had to be asked about.
    `ballot`: the votes that were dictated, where the answers are those of one.
    """

    answers: Answers
    site: Site
    claim: Claim
    prediction: int
    patched: bool
    by_chance: bool = False
    asks: int = 1
    ballot: Ballot | None = None


@dataclass(frozen=True)
class DictatedAttack:
    """Attacks on the certificates of one harness against one threat. What they count is added to `tally`."""

    harness: Harness
    threat: Patches
    tally: Tally

    def run(self, answers: Answers, site: Site, asks: int = 1) -> tuple[bool, Break | None]:
        """Returns whether the clean image was certified, and how that was broken; a break must be seen twice.

        `asks`: how often each image is shown to `predict`. Answers that the certifier refuses are counted.
        """
        self.tally.ballots += 1
        self.harness.dictate(answers)
        try:
            claim = self._claim()
            if claim is None:
                return False, None
            self.tally.certified += 1
            self.tally.attacked += 1
            if self._contradiction(claim, site, asks) is None:
                return True, None
            return True, self.confirmed(answers, site, asks)
        except Refused as refusal:
            self.tally.refused[str(refusal)] += 1
            return False, None

    def confirmed(self, answers: Answers, site: Site, asks: int = 1) -> Break | None:
        """The same with a new certifier, which keeps nothing of other votes. Raises `Refused`."""
        self.harness.renew(answers)
        claim = self._claim()
        found = None if claim is None else self._contradiction(claim, site, asks)
        if claim is None or found is None:
            return None
        patched, prediction = found
        x = site.x_adv if patched else self.harness.x
        again = [int(self.harness.subject.predict(x)) for _ in range(_ASKS)]
        chance = any(answer != prediction for answer in again)
        return Break(answers, site, claim, prediction, patched, chance, max(asks, 4 * _ASKS if chance else 1))

    def _claim(self) -> Claim | None:
        """The claim of the clean image, if it is certified for a class."""
        claim = self.harness.subject.certify(self.harness.x, self.threat)
        return claim if bool(claim.certified[0]) and int(claim.prediction[0]) >= 0 else None

    def _contradiction(self, claim: Claim, site: Site, asks: int) -> tuple[bool, int] | None:
        """An image whose prediction contradicts the claim: (is it the patched one, its prediction), or None."""
        subject = self.harness.subject
        for patched, x in ((False, self.harness.x), (True, site.x_adv)):
            for _ in range(asks):
                prediction = subject.predict(x)
                if bool(subject.changed(prediction, int(claim.prediction[0]))[0]):
                    return patched, int(prediction)
        return None

    def cast(self, ballot: Ballot, site: Site, scale: float = 1.0) -> Break | None:
        """Runs the ballot, overturned at that place by patched views whose scores are `scale` times as large."""
        found = self.run(self._answers(ballot, scale), site, _ASKS if ballot.tie else 1)[1]
        return None if found is None else replace(found, ballot=ballot)

    def certifies(self, ballot: Ballot, site: Site) -> bool:
        """Tells whether the clean image is certified with these votes."""
        return self.run(self._answers(ballot), site)[0]

    def _answers(self, ballot: Ballot, scale: float = 1.0) -> Answers:
        """The ballot as answers; views that `certify` alone shows its base vote for the winner."""
        k = self.harness.classes
        votes = {**dict.fromkeys(self.harness.extra(self.threat), (ballot.winner,)), **ballot.answers}
        rows = {answer: vote(k, answer) for answer in set(votes.values())}
        return Answers({key: rows[answer] for key, answer in votes.items()}, vote(k, ballot.others, scale))

    def finding(self, found: Break, check: str, cause: str = "", times: int = 1) -> Finding:
        """The break as a finding that says what was seen, then the `cause`, where one was shown."""
        harness, answers, claimed = self.harness, found.answers, int(found.claim.prediction[0])
        shape, said = "x".join(map(str, harness.shape)), _in_words(harness.shown, answers)
        text = f"answers of the views of an image ({shape}), {said}, were certified for class {claimed}"
        text += f" against {self.threat}"
        if found.patched:
            other = self._patched_views(found)
            at = ", ".join(str(tuple(corner)) for corner in found.site.corners.tolist())
            views = (
                f"{sum(other.values())} views differ, which answer {_in_words(other, answers)}, and " if other else ""
            )
            text += f"; with a patch at {at}, {views}the prediction is {found.prediction}"
        else:
            text += f", but without any patch predict says {found.prediction}"
        if found.by_chance:
            text += "; asked again about the same image and answers, predict says something else"
        note = {
            "kind": "votes",
            "threat": self.threat.to_dict(),
            "classes": harness.classes,
            "alerts": harness.alerts,
            "prediction": claimed,
            "patched": found.patched,
            "asks": found.asks,
        }
        corners = found.site.corners.reshape(self.threat.count, 2)
        tensors = {"x": harness.x[0], "x_adv": found.site.x_adv[0], "corners": corners, **answers.tensors()}
        return Finding(check, "broken certificate", f"{text}: {cause}" if cause else text, tensors, note, times)

    def _patched_views(self, found: Break) -> dict[Key, int]:
        """The views that the patched image shows and the clean one does not; none once the audit is stopped."""
        shown: Counter[Key] = Counter()
        with suppress(Refused, Stopped):
            self.harness.dictate(found.answers)
            shown = self.harness.views(found.site.x_adv)
        return {key: number for key, number in shown.items() if key not in self.harness.shown}


def _in_words(views: Counter[Key] | dict[Key, int], answers: Answers) -> str:
    """The answers of views in words: "class 0 by 25, class 1 by 10, nothing by 2, class 2 at 0.7 by 1"."""
    counts: Counter[str] = Counter()
    for key, number in views.items():
        counts[_text(answers.by_view.get(key, answers.others))] += number
    return ", ".join(f"{what} by {number}" for what, number in counts.most_common(6)) + (
        f" and {len(counts) - 6} other answers" if len(counts) > 6 else ""
    )


def _text(row: Logits) -> str:
    best, least = max(row), min(row)
    classes = [k for k, value in enumerate(row) if value == best]
    if best == least:
        return "nothing"
    name = "class " + " and ".join(map(str, classes))
    if set(row) == {SCALE, -SCALE}:
        return name
    return f"{name} at {best:g} against {sorted(row)[-1 - len(classes)]:g}"


def votes_show_again(harness: Harness, threat: Patches, tensors: dict[str, Tensor], note: dict[str, Any]) -> bool:
    """Tells whether a certificate of the saved answers is broken by that patch, or contradicted without any."""
    x_adv, corners = tensors["x_adv"][None], tensors["corners"]
    outside = ~threat.footprint(corners[None], *harness.shape[1:])[0]
    if bool(((x_adv != harness.x)[0] & outside).any()) or not bool(((x_adv >= 0) & (x_adv <= 1)).all()):
        return False
    attack, site = DictatedAttack(harness, threat, Tally()), Site(corners, x_adv, set(), 0)
    try:
        return attack.confirmed(Answers.of(tensors), site, max(1, note.get("asks", 1))) is not None
    except Refused:
        return False

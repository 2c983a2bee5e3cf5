"""A search for breaks of rules that no formula foresees: certified answers and patched answers, step by step.

The state is what the base says of each clean view and of each patched one. The clean answers are led to the edge of
what is certified; then the patched views answer for the rival, for a third class, for the winner, mixed or graded.
How near a state is to a break is measured by the slack: how many more clean views would have to turn before the patched
image is predicted otherwise. Moves that keep the certificate and do not raise the slack are kept. Each break is a
certified prediction seen to change, whatever the rule, so that no sound certifier is accused.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations

from evaluate.audit.certifier import Refused
from evaluate.audit.dictated_attack import Break, DictatedAttack
from evaluate.audit.dictated_base import Answers, Key, Logits, vote
from evaluate.audit.harness import Site
from evaluate.audit.threshold_search import Threshold

_MOVES = 24  # of each climb
_SHARES = 4  # numbers of patched views for the rival tried for each certified state, and
_MIXED = 5  # answers drawn by chance
_GOLDEN = (5**0.5 - 1) / 2
ByView = dict[Key, Logits]


class AnswerSearch:
    """The search of one attack within so many `calls`; at `thresholds` the certifier is known to change its mind."""

    def __init__(
        self,
        attack: DictatedAttack,
        sites: Sequence[Site],
        thresholds: Sequence[Threshold],
        calls: int,
        rng: random.Random,
    ) -> None:
        self.attack, self.harness, self.sites, self.thresholds = attack, attack.harness, list(sites), list(thresholds)
        self.left, self.rng = calls, rng
        self.keys = list(dict.fromkeys([*self.harness.shown, *self.harness.extra(attack.threat)]))

    def run(self) -> Break | None:
        """The first break found within the calls allowed."""
        orders = list(permutations(range(self.harness.classes), min(3, self.harness.classes)))
        self.rng.shuffle(orders)
        turn = 0
        while self.left > 0 and self.sites:
            if turn == 3 * len(orders) and not self.attack.tally.certified:
                return None  # nothing is certified here
            c, j, *thirds = orders[turn % len(orders)]
            site = self.sites[turn % len(self.sites)]
            try:
                broken = self._round(site, c, j, thirds[0] if thirds else j, climb=turn % 3 == 2)
            except Refused as refusal:
                self.attack.tally.refused[str(refusal)] += 1
                self.left -= 10  # a certifier that refuses everything is not asked for ever
                broken = None
            if broken is not None:
                return broken
            turn += 1
        return None

    def _round(self, site: Site, c: int, j: int, t: int, climb: bool) -> Break | None:
        rows = self._palette(c, j, t)
        others = rows["rival"]
        clean = self._last_certified(site, rows, others, c)
        if clean is None:
            return None
        tally = self.attack.tally
        tally.ballots, tally.certified, tally.attacked = tally.ballots + 1, tally.certified + 1, tally.attacked + 1
        if self._turned(Answers(clean, others), None, c):
            return self._confirmed(Answers(clean, others), site)
        self.harness.dictate(Answers(clean, others))
        new = [key for key in self.harness.views(site.x_adv) if key not in clean]
        for patched in self._patterns(new, rows):
            answers = Answers({**clean, **patched}, others)
            if self._turned(answers, site, c):
                broken = self._confirmed(answers, site)
                if broken is not None:
                    return broken
        return self._climb(clean, new, rows, site, c) if climb else None

    def _palette(self, c: int, j: int, t: int) -> dict[str, Logits]:
        """The answers that a view may give: plain, for several classes, soft, large, or exactly at a threshold."""
        k, rng = self.harness.classes, self.rng
        rows = {
            "own": vote(k, (c,)),
            "rival": vote(k, (j,)),
            "third": vote(k, (t,)),
            "silent": vote(k, ()),
            "both": vote(k, (c, j)),
            "rivals": vote(k, (j, t)),
            "soft own": Threshold("two", rng.uniform(0.05, 4)).row(k, c, j),
            "soft rival": Threshold("two", rng.uniform(0.05, 4)).row(k, j, c),
            "soft third": Threshold("two", rng.uniform(0.05, 4)).row(k, t, c),
            "large own": vote(k, (c,), 1000.0),
            "large rival": vote(k, (j,), 1000.0),
        }
        for one in rng.sample(self.thresholds, min(3, len(self.thresholds))):
            rows[f"own at {one.t}"] = one.row(k, c, j)
            rows[f"rival at {one.t}"] = one.row(k, j, c)
        return rows

    def _last_certified(self, site: Site, rows: dict[str, Logits], others: Logits, c: int) -> ByView | None:
        """Answers certified for c, of which some are turned, in a random order, as far as it stays certified."""
        rng, names = self.rng, list(rows)
        start = rng.choice(["own", "own", "own", *[n for n in names if "own" in n]])
        clean = dict.fromkeys(self.keys, rows[start])
        if not self._certified(clean, others, c):
            return None
        targets = rng.choice(
            (["rival"], ["third"], ["rival", "third"], ["silent"], ["rival", "silent"], ["own", "rival"], names)
        )
        order = self._order(site)
        by_turns = rng.random() < 0.5
        names = [targets[n % len(targets)] if by_turns else rng.choice(targets) for n in range(len(order))]
        turned = [(key, rows[name]) for key, name in zip(order, names, strict=True)]
        low, high = 0, len(turned)
        if self._certified({**clean, **dict(turned)}, others, c):
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            if self._certified({**clean, **dict(turned[:middle])}, others, c):
                low = middle
            else:
                high = middle
        clean.update(turned[:low])
        for key in rng.sample(self.keys, min(3, len(self.keys))):
            more = {**clean, key: rows[rng.choice(list(rows))]}
            if self._certified(more, others, c):
                clean = more
        return clean

    def _order(self, site: Site) -> list[Key]:
        """The views in the order in which they turn: by chance, as shown, or spread evenly over all that are shown;
        those that a patch reaches like others, last, first or not at all.
        """
        rng, keys = self.rng, list(self.keys)
        at, how, reached = rng.randrange(len(keys)), rng.randrange(3), rng.randrange(4)
        keys = keys[at:] + keys[:at]
        if how == 1:
            rng.shuffle(keys)
        elif how == 2:
            keys = _evenly(keys)
        if reached in (1, 2):
            keys.sort(key=lambda key: (key in site.touched) == (reached == 1 or rng.random() < 0.1))
        return [key for key in keys if key not in site.touched] if reached == 3 else keys

    def _patterns(self, new: list[Key], rows: dict[str, Logits]) -> Iterator[ByView]:
        """The answers that the patched views may give: all alike, some the rival's and the rest something else, evenly
        or in two runs, or each by itself.
        """
        rng, names = self.rng, list(rows)
        plain = ["rival", "third", "own", "silent", "rivals", "both", "soft rival"]
        yield {}
        for name in [*plain[1:], *rng.sample(names, min(2, len(names)))]:
            yield dict.fromkeys(new, rows[name])
        if len(new) < 2:
            return
        for rest in rng.sample(("own", "third", "silent"), 2):
            for number in rng.sample(range(1, len(new)), min(_SHARES, len(new) - 1)):
                order = _evenly(new) if rng.random() < 0.5 else new
                yield {key: rows["rival" if m < number else rest] for m, key in enumerate(order)}
        for n in range(_MIXED):
            one, two = rng.sample(plain if n % 3 else names, 2)
            if n % 2:
                cut, at = rng.randrange(1, len(new)), rng.randrange(len(new))
                turned = new[at:] + new[:at]
                yield {key: rows[one if m < cut else two] for m, key in enumerate(turned)}
            else:
                share = rng.choice((0.2, 0.5, 0.8))
                yield {key: rows[one if rng.random() < share else two] for key in new}

    def _climb(self, clean: ByView, new: list[Key], rows: dict[str, Logits], site: Site, c: int) -> Break | None:
        """Random moves of clean and of patched answers that keep the certificate and do not raise the slack."""
        rng, others, names = self.rng, rows["rival"], list(rows)
        outside = [key for key in self.keys if key not in site.touched]
        rng.shuffle(outside)
        patched: ByView = {}
        slack = self._slack(clean, patched, others, outside, site, c)
        for move in range(_MOVES):
            if self.left <= 0:
                return None
            keys = self.keys if move % 2 or not new else new
            at, run = rng.randrange(len(keys)), rng.choice((1, 1, 2, 3, max(1, len(keys) // 4)))
            changes = dict.fromkeys(keys[at : at + run], rows[rng.choice(names)])
            if keys is self.keys:
                own, adversary = {**clean, **changes}, patched
                if not self._certified(own, others, c):
                    continue
            else:
                own, adversary = clean, {**patched, **changes}
            now = self._slack(own, adversary, others, outside, site, c)
            if now > slack:
                continue
            clean, patched, slack = own, adversary, now
            if slack == 0:
                broken = self._confirmed(Answers({**clean, **patched}, others), site)
                if broken is not None:
                    return broken
        return None

    def _slack(self, clean: ByView, patched: ByView, others: Logits, outside: list[Key], site: Site, c: int) -> int:
        """Counts the clean views outside of the patch that, in that order, have to turn with it before the prediction
        does.
        """

        def turned(number: int) -> bool:
            more = dict.fromkeys(outside[:number], others)
            return self._turned(Answers({**clean, **more, **patched}, others), site, c)

        if turned(0):
            return 0
        low, high = 0, len(outside) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if turned(middle) else (middle, high)
        return high

    def _certified(self, clean: ByView, others: Logits, c: int) -> bool:
        self.left -= 1
        self.harness.dictate(Answers(clean, others))
        claim = self.harness.subject.certify(self.harness.x, self.attack.threat)
        return bool(claim.certified[0]) and int(claim.prediction[0]) == c

    def _turned(self, answers: Answers, site: Site | None, c: int) -> bool:
        self.left -= 1
        self.harness.dictate(answers)
        subject = self.harness.subject
        return bool(subject.changed(subject.predict(self.harness.x if site is None else site.x_adv), c)[0])

    def _confirmed(self, answers: Answers, site: Site) -> Break | None:
        self.left -= 6
        return self.attack.confirmed(answers, site)


def _evenly(keys: list[Key]) -> list[Key]:
    """In an order of which every beginning is spread evenly over all of them."""
    return [keys[n] for n in sorted(range(len(keys)), key=lambda n: n * _GOLDEN % 1)]

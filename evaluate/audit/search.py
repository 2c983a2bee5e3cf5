"""Rules that no formula foresees: certified answers and patched answers are searched together, step by step.

The state is what the base says of each clean view and of each patched one. The clean answers are led to the edge of
what is certified; then the patched views answer for the rival, for a third class, for the winner, mixed or graded.
How near a state is to a break is measured by the slack: how many more clean views would have to turn before the patched
image is predicted otherwise. Moves that keep the certificate and do not raise the slack are kept. Each break is a
certified prediction seen to change, whatever the rule; a rule that stands is never wronged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import permutations

from evaluate.audit.edges import Edge
from evaluate.audit.harness import Site, Stand
from evaluate.audit.interface import Refused
from evaluate.audit.tables import SCALE, Key, Row, vote
from evaluate.audit.trial import Fall, Table, Tally, confirmed
from robustpatch.threats.base import Patches

_MOVES = 24  # of each climb
_SHARES = 4  # numbers of patched views for the rival tried for each certified state, and
_MIXED = 5  # answers drawn by chance
_GOLDEN = (5**0.5 - 1) / 2


class Search:
    """The search for one threat on one image; `edges` are scores at which the certifier is known to change its mind."""

    def __init__(
        self,
        stand: Stand,
        threat: Patches,
        sites: Sequence[Site],
        edges: Sequence[Edge],
        calls: int,
        rng: random.Random,
        tally: Tally,
    ) -> None:
        self.stand, self.threat, self.sites, self.edges = stand, threat, list(sites), list(edges)
        self.left, self.rng, self.tally = calls, rng, tally
        self.keys = list(dict.fromkeys([*stand.shown, *stand.extra(threat)]))

    def run(self) -> Fall | None:
        """The first break found within the calls allowed."""
        orders = list(permutations(range(self.stand.classes), min(3, self.stand.classes)))
        self.rng.shuffle(orders)
        turn = 0
        while self.left > 0 and self.sites:
            if turn == 3 * len(orders) and not self.tally.certified:
                return None  # nothing is certified here
            c, j, *thirds = orders[turn % len(orders)]
            t = thirds[0] if thirds else j
            site = self.sites[turn % len(self.sites)]
            try:
                fall = self._round(site, c, j, t, climb=turn % 3 == 2)
            except Refused as refusal:
                self.tally.refused[str(refusal)] += 1
                self.left -= 10  # a certifier that refuses everything is not asked for ever
                fall = None
            if fall is not None:
                return fall
            turn += 1
        return None

    def _round(self, site: Site, c: int, j: int, t: int, climb: bool) -> Fall | None:
        rows = self._palette(c, j, t)
        others = rows["rival"]
        said = self._edge(site, rows, others, c)
        if said is None:
            return None
        self.tally.ballots += 1
        self.tally.certified += 1
        if self._turned(Table(said, others), None, c):
            return self._confirmed(Table(said, others), site)
        new = self._new_keys(said, others, site)
        for patched in self._patterns(new, rows):
            table = Table({**said, **patched}, others)
            if self._turned(table, site, c):
                fall = self._confirmed(table, site)
                if fall is not None:
                    return fall
        return self._climb(said, new, rows, site, c) if climb else None

    def _palette(self, c: int, j: int, t: int) -> dict[str, Row]:
        """The answers that a view may give: plain, for several classes, soft, loud, or exactly at an edge."""
        k, rng = self.stand.classes, self.rng
        rows = {
            "own": vote(k, (c,)),
            "rival": vote(k, (j,)),
            "third": vote(k, (t,)),
            "silent": vote(k, ()),
            "both": vote(k, (c, j)),
            "rivals": vote(k, (j, t)),
            "soft own": _soft(k, c, j, rng.uniform(0.05, 4)),
            "soft rival": _soft(k, j, c, rng.uniform(0.05, 4)),
            "soft third": _soft(k, t, c, rng.uniform(0.05, 4)),
            "loud own": vote(k, (c,), 1000.0),
            "loud rival": vote(k, (j,), 1000.0),
        }
        for edge in rng.sample(self.edges, min(3, len(self.edges))):
            rows[f"own at {edge.t}"] = edge.row(k, c, j)
            rows[f"rival at {edge.t}"] = edge.row(k, j, c)
        return rows

    def _edge(self, site: Site, rows: dict[str, Row], others: Row, c: int) -> dict[Key, Row] | None:
        """Answers certified for c, of which some are turned, in a random order, up to the edge of the certificate."""
        rng, names = self.rng, list(rows)
        start = rng.choice(["own", "own", "own", *[n for n in names if "own" in n]])
        said = dict.fromkeys(self.keys, rows[start])
        if not self._certified(said, others, c):
            return None
        targets = rng.choice(
            (["rival"], ["third"], ["rival", "third"], ["silent"], ["rival", "silent"], ["own", "rival"], names)
        )
        order = self._order(site)
        by_turns = rng.random() < 0.5
        names = [targets[n % len(targets)] if by_turns else rng.choice(targets) for n in range(len(order))]
        turned = [(key, rows[name]) for key, name in zip(order, names, strict=True)]
        low, high = 0, len(turned)
        if self._certified({**said, **dict(turned)}, others, c):
            low = high
        while high - low > 1:
            middle = (low + high) // 2
            if self._certified({**said, **dict(turned[:middle])}, others, c):
                low = middle
            else:
                high = middle
        said.update(turned[:low])
        for key in rng.sample(self.keys, min(3, len(self.keys))):
            more = {**said, key: rows[rng.choice(list(rows))]}
            if self._certified(more, others, c):
                said = more
        return said

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

    def _patterns(self, new: list[Key], rows: dict[str, Row]) -> Iterator[dict[Key, Row]]:
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

    def _climb(self, said: dict[Key, Row], new: list[Key], rows: dict[str, Row], site: Site, c: int) -> Fall | None:
        """Random moves of clean and of patched answers that keep the certificate and do not raise the slack."""
        rng, others, names = self.rng, rows["rival"], list(rows)
        outside = [key for key in self.keys if key not in site.touched]
        rng.shuffle(outside)
        patched: dict[Key, Row] = {}
        slack = self._slack(said, patched, others, outside, site, c)
        for move in range(_MOVES):
            if self.left <= 0:
                return None
            keys = self.keys if move % 2 or not new else new
            at, run = rng.randrange(len(keys)), rng.choice((1, 1, 2, 3, max(1, len(keys) // 4)))
            changes = dict.fromkeys(keys[at : at + run], rows[rng.choice(names)])
            clean, adversary = ({**said, **changes}, patched) if keys is self.keys else (said, {**patched, **changes})
            if keys is self.keys and not self._certified(clean, others, c):
                continue
            now = self._slack(clean, adversary, others, outside, site, c)
            if now > slack:
                continue
            said, patched, slack = clean, adversary, now
            if slack == 0:
                fall = self._confirmed(Table({**said, **patched}, others), site)
                if fall is not None:
                    return fall
        return None

    def _slack(
        self, said: dict[Key, Row], patched: dict[Key, Row], others: Row, outside: list[Key], site: Site, c: int
    ) -> int:
        """Counts the clean views outside of the patch that, in that order, have to turn with it before the prediction
        does.
        """

        def turned(number: int) -> bool:
            more = dict.fromkeys(outside[:number], others)
            return self._turned(Table({**said, **more, **patched}, others), site, c)

        if turned(0):
            return 0
        low, high = 0, len(outside) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if turned(middle) else (middle, high)
        return high

    def _certified(self, said: dict[Key, Row], others: Row, c: int) -> bool:
        self.left -= 1
        self.stand.say(said, others)
        claim = self.stand.subject.certify(self.stand.x, self.threat)
        return bool(claim.certified[0]) and int(claim.prediction[0]) == c

    def _predicted(self, said: dict[Key, Row], others: Row, site: Site | None) -> int:
        self.left -= 1
        self.stand.say(said, others)
        return int(self.stand.subject.predict(self.stand.x if site is None else site.x_adv))

    def _turned(self, table: Table, site: Site | None, c: int) -> bool:
        found = self._predicted(table.said, table.others, site)
        return found != c and (found >= 0 or not self.stand.subject.forgiving)

    def _new_keys(self, said: dict[Key, Row], others: Row, site: Site) -> list[Key]:
        """The views that the patched image shows and the clean one does not."""
        self.stand.say(said, others)
        with self.stand.base.recording() as shown:
            self.stand.subject.predict(site.x_adv)
        return [key for key in shown if key not in said]

    def _confirmed(self, table: Table, site: Site) -> Fall | None:
        self.left -= 6
        return confirmed(self.stand, self.threat, table, site)


def _soft(classes: int, winner: int, rival: int, lead: float) -> Row:
    """Logits `lead` against 0, all other classes far below."""
    values = [-SCALE] * classes
    values[rival], values[winner] = 0.0, lead
    return tuple(values)


def _evenly(keys: list[Key]) -> list[Key]:
    """In an order of which every beginning is spread evenly over all of them."""
    return [keys[n] for n in sorted(range(len(keys)), key=lambda n: n * _GOLDEN % 1)]

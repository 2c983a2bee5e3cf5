"""A ballot cast at a place of the patch: certified, then overturned."""

from __future__ import annotations

from dataclasses import dataclass

from evaluate.audit.harness import Site, Stand
from evaluate.audit.tables import vote
from evaluate.audit.trial import Fall, Table, Tally, tried
from evaluate.audit.vote_patterns import Ballot
from robustpatch.threats.base import Patches

TIE_ASKS = 4  # how often predict is asked about equal votes, which it might settle by chance


@dataclass(frozen=True, eq=False)
class Break:
    """A ballot that was certified and overturned."""

    ballot: Ballot
    site: Site
    fall: Fall


def cast(stand: Stand, threat: Patches, ballot: Ballot, site: Site, tally: Tally, loud: float = 1.0) -> Break | None:
    """Let the ballot be cast and overturned at that place, by patched views `loud` times as loud."""
    asks = TIE_ASKS if ballot.tie else 1
    fall = tried(stand, threat, table_of(stand, threat, ballot, loud), site, tally, asks)[1]
    return None if fall is None else Break(ballot, site, fall)


def table_of(stand: Stand, threat: Patches, ballot: Ballot, loud: float = 1.0) -> Table:
    """The ballot as answers; what `certify` alone shows its base is for the winner."""
    answers = {**dict.fromkeys(stand.extra(threat), (ballot.winner,)), **ballot.answers}
    rows = {answer: vote(stand.classes, answer) for answer in set(answers.values())}
    return Table({key: rows[answer] for key, answer in answers.items()}, vote(stand.classes, ballot.others, loud))

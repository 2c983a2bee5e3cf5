"""python -m tests.evaluate.acceptance.examine [--first] [TEXT ...]: the audit with defaults on every certifier here.

Prints a table. With TEXT, of those whose kind and name contain one of them, as "c-" or "sound". With --first, an audit
is told to stop as soon as it has found what it is to find. Seconds are of processor time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch

from evaluate.audit import Audit, audit, replay
from evaluate.audit.finding import Tally
from evaluate.audit.stopping import Limit
from tests.evaluate.acceptance.cases import SOUND, UNSOUND, Case
from tests.evaluate.acceptance.sound import ibp
from tests.evaluate.audit_table import found

HEAD = "| kind | certifier | verdict | right | found | replayed | s |\n| --- | --- | --- | --- | --- | --- | ---: |"
BY_CHANCE = "call to call"  # said of certifiers that draw lots, and nothing else is


@dataclass(frozen=True)
class Result:
    """The audit of a case, how many of its findings their files show again, and the seconds it took."""

    case: Case
    done: Audit
    replayed: int
    seconds: float

    @property
    def right(self) -> bool:
        """Unsound: broken, and shown again by the files of all that breaks it. By chance: told that its votes differ
        from call to call, and no other cause. Sound: nothing but warnings, and certificates that were tested.
        """
        if self.case.kind == "sound":
            return not self.done.failed and self.done.verdict == "held"
        if self.case.kind == "g":
            told = [one for one in self.done.findings if one.severity != "warning"]
            return bool(told) and all(BY_CHANCE in one.sentence for one in told)
        return self.done.verdict == "broken" and self.replayed == len(self.done.findings)

    def __str__(self) -> str:
        replayed = f"{self.replayed} of {len(self.done.findings)}" if self.done.findings else "–"
        cells = [self.case.kind, self.case.name, self.done.verdict, "yes" if self.right else "NO", found(self.done)]
        return f"| {' | '.join([*cells, replayed, f'{self.seconds:.0f}'])} |"


def examined(case: Case, first: bool = False) -> Result:
    """The audit with defaults, its findings shown again from their files; `first`: ended by the step in which a
    certificate was broken, or views were seen to differ by chance.
    """
    threads, limit = torch.get_num_threads(), Limit()
    wanted = ("broken certificate", "inconsistent") if case.kind == "g" else ("broken certificate",)

    def counting(total: Tally, tally: Tally, add: Callable[[Tally, Tally], None] = Tally.add) -> None:
        add(total, tally)
        if first and any(one.severity in wanted for one in tally.findings):
            limit.stop("the first finding")

    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder, mock.patch.object(Tally, "add", counting):
            target = None if case.make is not None else ibp()
            started = time.process_time()
            done = audit(target, factory=case.make, output=folder, limit=limit, **case.options)
            seconds = time.process_time() - started
            again = [one.path is not None and replay(one.path, target, case.make) for one in done.findings]
        return Result(case, done, sum(again), seconds)
    finally:
        torch.set_num_threads(threads)


def main(texts: list[str], first: bool = False) -> None:
    """Print the rows as Markdown, each as soon as it is known."""
    print(HEAD, flush=True)
    for case in [*UNSOUND, *SOUND]:
        if not texts or any(text in str(case) for text in texts):
            print(examined(case, first), flush=True)


if __name__ == "__main__":
    main([text for text in sys.argv[1:] if text != "--first"], "--first" in sys.argv[1:])

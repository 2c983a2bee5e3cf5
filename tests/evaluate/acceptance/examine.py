"""python -m tests.evaluate.acceptance.examine [TEXT ...]: the audit with defaults on every certifier here, as a table.

With TEXT, on those whose kind and name contain one of them, as "c-" or "sound". Seconds are of processor time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass

import torch

from evaluate.audit import Audit, audit, replay
from tests.evaluate.acceptance.cases import SOUND, UNSOUND, Case
from tests.evaluate.acceptance.sound import ibp

HEAD = "| kind | certifier | verdict | right | found | replayed | s |\n| --- | --- | --- | --- | --- | --- | ---: |"
BY_CHANCE = "call to call"  # what is said of certifiers that draw lots, and nothing else


@dataclass(frozen=True)
class Result:
    """What the audit said of a case, how many of its findings their files show again, and the seconds it took."""

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
        found = ", ".join(f"{one.check} ({one.severity}, {one.times}×)" for one in self.done.findings) or "–"
        replayed = f"{self.replayed} of {len(self.done.findings)}" if self.done.findings else "–"
        cells = [self.case.kind, self.case.name, self.done.verdict, "yes" if self.right else "NO", found, replayed]
        return f"| {' | '.join([*cells, f'{self.seconds:.0f}'])} |"


def examined(case: Case) -> Result:
    """The audit with defaults, its findings shown again from their files."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            target = None if case.make is not None else ibp()
            started = time.process_time()
            done = audit(target, factory=case.make, output=folder, **case.options)
            seconds = time.process_time() - started
            again = [one.path is not None and replay(one.path, target, case.make) for one in done.findings]
        return Result(case, done, sum(again), seconds)
    finally:
        torch.set_num_threads(threads)


def main(texts: list[str]) -> None:
    """Print the rows as Markdown."""
    print(HEAD, flush=True)
    for case in [*UNSOUND, *SOUND]:
        if not texts or any(text in str(case) for text in texts):
            print(examined(case), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""An audit that is stopped, at whatever question, keeps what it had found and says what it did not finish."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from evaluate.audit import audit
from evaluate.audit.certifier import AuditedCertifier
from evaluate.audit.factory import steps
from evaluate.audit.finding import Tally
from evaluate.audit.plans import Plan
from evaluate.audit.report import verdict
from evaluate.audit.stopping import Limit, Steps, Stopped, in_short
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate import audit_bugs, audit_rules
from tests.evaluate.audits import Bright, audited

PATCH, SHAPE = PatchThreat(2, 2), (1, 4, 13)


def stopped(make, at: int | None, said=lambda _: None):
    """The audit of a factory told to stop at its question number `at`, and how many questions it asked."""
    limit, asked = Limit(), [0]

    def counted(method):
        def ask(*given):
            asked[0] += 1
            if asked[0] == at:
                limit.stop("the test")
            return method(*given)

        return ask

    def factory(base, num_classes, image_shape):
        certifier = make(base, num_classes, image_shape)
        certifier.certify, certifier.predict = counted(certifier.certify), counted(certifier.predict)
        return certifier

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a certifier by chance draws the same each time
        done = audit(factory=factory, limit=limit, threat=PATCH, image_shape=SHAPE, budget=4, on_progress=said)
    return done, asked[0]


@pytest.mark.parametrize(
    ("rule", "bug", "plan"),
    [
        ("ties", "higher", Plan(SHAPE, (PATCH,))),
        ("summed", "float32 sum", Plan(SHAPE, (PATCH,), deep=True)),
        ("batches", "turned round", Plan(SHAPE, (PATCH,), batches=True)),
        ("sizes", "odd alone", Plan(SHAPE, (PatchThreat(2, 3), PATCH), brief=True)),
        ("sampled", "half", Plan(SHAPE, (PATCH,))),
    ],
)
def test_findings_until_then_are_kept(only_plans, rule, bug, plan):
    """Once something is found it is found by every audit that is stopped later: in ballots, searches, batches and
    while causes are looked for.
    """
    only_plans(plan)
    make = audit_rules.make(rule, bug)
    whole, number = stopped(make, None)
    assert whole.failed
    found = []
    for at in [*range(1, number - 1, max(1, number // 4)), number - 1, number]:
        done, asked = stopped(make, at)
        assert (done.stopped, asked) == ("the test", at)
        found.append(done.failed)
        assert done.verdict == ("broken" if any("broken" in one.severity for one in done.findings) else "not tested")
        assert at > 9 or any("dictating votes: 1x4x13" in what for what, _ in done.untested)
    assert found == sorted(found)
    assert found[-1]


def test_the_steps_are_known_beforehand(only_plans):
    """Each plan's, in order: dictated votes of each patch that fits, then a search, then batches."""
    plans = [
        Plan(SHAPE, (PATCH, PatchThreat(9, 1), PatchThreat(1, 1)), deep=True, batches=True),
        Plan((1, 2, 9), (PatchThreat(1, 2),), brief=True),
    ]
    only_plans(*plans)
    said: list[str] = []
    stopped(audit_rules.make("ties"), None, said=said.append)
    assert [line.split(" (")[0] for line in said] == steps(SHAPE, PATCH)
    assert numbers(said) == [f"step {n} of 5" for n in range(1, 6)]


def numbers(said):
    return [line.split(" (")[1].split(",")[0].rstrip(")") for line in said]


def test_steps_that_were_not_foreseen():
    said: list[str] = []
    step = Steps(["one", "two", "three"], said.append)
    step("one")
    assert step.unfinished == ["one", "two", "three"]
    for name in ("two", "another", "three"):
        step(name)
    assert numbers(said) == ["step 1 of 3", "step 2 of 3", "step 3 of 4", "step 4 of 4"]
    assert "left" in said[1]


def test_untested_things_are_said_in_short():
    """Many steps of one kind are counted, and an error that came again and again is one line with its number."""
    names = ["looking", *(f"dictating: 1x5x14, 1x{n} patch" for n in range(1, 5)), "asking: 1x5x14, 1x1 patch"]
    assert in_short(names) == "looking; dictating: 1x5x14 (4 steps); asking: 1x5x14, 1x1 patch"
    assert in_short(names[2:]) == "; ".join(names[2:])
    tally = Tally(untested=[("one", "why")], refused=Counter({"why": 1, "no images": 2}))
    assert tally.not_tested == (("one, 1 question", "why"), ("2 questions", "no images"))


@pytest.mark.parametrize(("wrong", "at", "found"), [("one column less", 30, []), ("contradiction", 5, ["agreement"])])
def test_a_target_that_is_stopped(wrong, at, found):
    """Nothing is held then; the steps that were not finished are listed."""
    limit = Limit()
    done = audited(Bright(wrong, lambda n: limit.stop("the test") if n == at else None), limit=limit)
    assert (done.stopped, done.verdict, [one.check for one in done.findings]) == ("the test", "not tested", found)
    assert "attacking certified images" in {why: what for what, why in done.untested}["stopped by the test"]
    assert "NOT TESTED to the end" in verdict(done)


def test_a_limit_of_seconds():
    done = audit(factory=audit_bugs.make(""), threat=PATCH, image_shape=(1, 4, 11), limit=0.001)
    assert (done.stopped, done.verdict) == ("the time limit of 0.001 s", "not tested")


def test_stopped_is_no_answer_of_the_certifier():
    """Whatever foreign or our own code catches, it ends the audit."""
    subject, limit = AuditedCertifier(Bright(), 2), Limit()
    with limit.running():
        limit.stop("the test")
        with pytest.raises(Stopped):
            subject.predict(torch.zeros(1, 1, 2, 3))
    assert not issubclass(Stopped, Exception)
    subject.predict(torch.zeros(1, 1, 2, 3))


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_ctrl_c_prints_the_findings(tmp_path):
    """Status 1 where something was found by then, and a report; what was not tested is said."""
    started, output = tmp_path / "started", tmp_path / "out"
    code = (
        "import pathlib, time\n"
        "from tests.evaluate.audits import Bright\n"
        f"wait = lambda n: n > 4 and (pathlib.Path({str(started)!r}).touch(), time.sleep(0.2))\n"
        "slow = Bright('contradiction', wait)\n"
    )
    (tmp_path / "slow.py").write_text(code)
    command = ["-m", "evaluate.audit", f"{tmp_path / 'slow.py'}:slow", "--patch", "1x2", "--shape", "1x2x9"]
    process = subprocess.Popen(
        [sys.executable, *command, "--output", str(output)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "stopping when the certifier has answered" in err
    assert "stopped by Ctrl-C" in out.replace("\n", " ")
    assert json.loads((output / "audit.json").read_text())["stopped"] == "Ctrl-C"

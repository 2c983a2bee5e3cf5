"""What a user of the audit meets: limits, Ctrl-C, errors of one's own code, files from before, images that are lent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from evaluate.audit import audit, replay
from evaluate.audit.__main__ import app
from evaluate.audit.certifier import AuditedCertifier, Refused
from evaluate.audit.finding import Tally
from evaluate.audit.plans import Plan
from evaluate.audit.report import verdict
from evaluate.audit.stopping import Limit, Steps, Stopped, in_short
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.audit_bugs import make
from tests.evaluate.test_audit_target import Bright, audited

HERE = Path(__file__).resolve()


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class Asked(Bright):
    """Told of each question, before it answers."""

    def __init__(self, wrong: str = "", before=lambda n: None) -> None:
        super().__init__(wrong)
        self.before, self.questions = before, 0

    def certify(self, x, threat):
        self.questions += 1
        self.before(self.questions)
        return super().certify(x, threat)


def test_a_limit_ends_it_and_keeps_what_was_found():
    """Nothing is held then; the steps that were not finished are listed."""
    limit = Limit()
    done = audited(Asked("one column less", lambda n: limit.stop("the test") if n == 30 else None), limit=limit)
    assert (done.stopped, done.verdict) == ("the test", "not tested")
    left = {why: what for what, why in done.untested}["stopped by the test"]
    assert "attacking certified images" in left
    assert "NOT TESTED to the end" in verdict(done)
    limit = Limit()
    done = audited(Asked("contradiction", lambda n: limit.stop("the test") if n == 5 else None), limit=limit)
    assert [one.check for one in done.findings] == ["agreement"]
    assert done.failed


def test_a_limit_amid_the_ballots():
    """Of the votes dictated by then, those that were overturned are reported."""
    limit, asked = Limit(), []

    def counting(base, num_classes, image_shape):
        certifier = make("1 off by one")(base, num_classes, image_shape)
        certify = certifier.certify

        def counted(x, threat):
            asked.append(threat)
            if len(asked) == 60:
                limit.stop("the test")
            return certify(x, threat)

        certifier.certify = counted
        return certifier

    done = audit(factory=counting, threat=PatchThreat(2, 2), image_shape=(1, 4, 11), limit=limit)
    assert (done.stopped, done.verdict, len(asked)) == ("the test", "broken", 60)
    assert any("dictating votes: 1x4x11, 2x2 patch" in what for what, _ in done.untested)


def test_a_limit_of_seconds():
    done = audit(factory=make(""), threat=PatchThreat(2, 2), image_shape=(1, 4, 11), limit=0.001)
    assert (done.stopped, done.verdict) == ("the time limit of 0.001 s", "not tested")


def test_steps_say_how_far_it_is():
    said = []
    step = Steps(["one", "two", "three"], said.append)
    step("one")
    assert step.unfinished == ["one", "two", "three"]
    step("two")
    step("another")
    step("three")
    assert [line.split(" (")[1].split(",")[0].rstrip(")") for line in said] == [
        "step 1 of 3",
        "step 2 of 3",
        "step 3 of 4",
        "step 4 of 4",
    ]
    assert "left" in said[1]


def test_what_is_not_tested_is_said_in_short():
    """Many steps of one kind are counted, and an error that came again and again is one line with its number."""
    names = ["looking", *(f"dictating: 1x5x14, 1x{n} patch" for n in range(1, 5)), "asking: 1x5x14, 1x1 patch"]
    assert in_short(names) == "looking; dictating: 1x5x14 (4 steps); asking: 1x5x14, 1x1 patch"
    assert in_short(names[2:]) == "; ".join(names[2:])
    tested = Tally(untested=[("one", "why")], refused=Counter({"why": 1, "no images": 2}))
    assert tested.not_tested == (("one, 1 question", "why"), ("2 questions", "no images"))


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
def test_ctrl_c_prints_what_was_found(tmp_path):
    """Status 1 where something was found by then, and a report; what was not tested is said."""
    started = tmp_path / "started"
    code = (
        "import pathlib, sys\n"
        "from tests.evaluate.test_audit_users import Asked\n"
        f"slow = Asked('contradiction', lambda n: n > 4 and (pathlib.Path({str(started)!r}).touch(), "
        "__import__('time').sleep(0.2)))\n"
    )
    (tmp_path / "slow.py").write_text(code)
    target, output = f"{tmp_path / 'slow.py'}:slow", tmp_path / "out"
    command = ["-m", "evaluate.audit", target, "--patch", "1x2", "--shape", "1x2x9", "--output", str(output)]
    process = subprocess.Popen(
        [os.sys.executable, *command], cwd=HERE.parents[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "stopping when the certifier has answered" in err
    assert "stopped by Ctrl-C" in out.replace("\n", " ")
    assert json.loads((output / "audit.json").read_text())["stopped"] == "Ctrl-C"


WRONG = """
import numpy as np


class Certifier:
    num_classes = 2

    def predict(self, x):
        return np.zeros(len(x), int)

    def certify(self, x, threat):
        return np.asarray(x)[:, 5]  # the line at fault


def maker():
    return {}["no such key"]  # the line at fault


def make(base, num_classes, image_shape):
    raise RuntimeError("not this size")  # the line at fault
"""


@pytest.mark.parametrize("named", [("{}:Certifier",), ("{}:maker",), ("--factory", "{}:make")])
def test_errors_of_ones_own_code_are_shown(named, tmp_path):
    """Status 2, with the traceback and, in the last line, the file and the line that it came from."""
    (tmp_path / "own.py").write_text(WRONG)
    done = call(*(text.format(tmp_path / "own.py") for text in named), "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "the line at fault" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "own.py, line" in last
    assert "internal error" not in done.stderr


def test_what_a_certifier_refuses_is_told_with_the_place():
    """An error on some images only is no end of the audit: it is listed, with the line that raised it."""

    class Picky(Bright):
        def certify(self, x, threat):
            if x.shape[3] > 9:
                raise ValueError("nine columns are enough")
            return super().certify(x, threat)

    with pytest.raises(Refused, match=r"ValueError: nine columns are enough \(.*test_audit_users.py, line \d+, in cer"):
        AuditedCertifier(Picky(), 2).certify(torch.zeros(1, 1, 2, 10), PatchThreat(1, 1))


def test_an_error_amid_the_attacks_loses_nothing():
    """What was found before is reported, and what the error kept from being tested is not held."""

    class Small(Bright):
        def certify(self, x, threat):
            if len(x) > 8:
                raise MemoryError("at most 8 images")
            return super().certify(x, threat)

    done = audited(Small("contradiction"), images=8)
    assert "agreement" in [one.check for one in done.findings]
    assert any(what.startswith("attacking") and "at most 8 images" in why for what, why in done.untested)
    assert audited(Small(), images=8).verdict == "not tested"


def test_a_network_that_raises_is_no_defect_of_the_audit():
    """Its scores are asked for by attacks, with gradients."""

    class Once(torch.nn.Module):
        num_classes = 2

        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("one image at a time")
            return torch.stack([0.5 - x.mean(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3)) - 0.5], dim=1)

        def predict(self, x):
            return Bright().predict(x)

        def certify(self, x, threat):
            return Bright().certify(x, threat)

    done = audited(Once().eval(), images=8, budget=20)
    assert done.verdict == "not tested"
    assert any("one image at a time" in why for _, why in done.untested)


def test_no_finding_of_an_earlier_audit_is_left(tmp_path):
    """What an earlier audit wrote is removed, what somebody else put there is not."""
    audited(Bright("one column less"), output=tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    kept = tmp_path / "00-mine.safetensors"
    kept.write_bytes(b"not a finding")
    (tmp_path / "report.md").write_text("of the earlier one")
    audited(Bright(), output=tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_the_command_that_shows_it_again_runs_from_any_folder(tmp_path, monkeypatch):
    """As printed, and as in report.md: full paths, or the folder in which the module was found."""
    (tmp_path / "own.py").write_text(
        "from tests.evaluate.test_audit_target import Bright\nbad = Bright('contradiction')\n"
    )
    monkeypatch.chdir(tmp_path)
    common = ("--patch", "1x2", "--shape", "1x2x9", "--images", 8, "--budget", 20, "--output", "out")
    done = call("own.py:bad", *common)
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("see it again: ") and "00-" in line]
    assert f"{tmp_path}/own.py:bad" in line
    assert line.split(": ", 1)[1] in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.chdir("/")
    again = call(*line.split("evaluate.audit ")[1].split())
    assert again.exit_code == 1, again.output
    assert "the finding stands" in again.output


def test_a_file_names_no_code_to_run(tmp_path):
    """Without a certifier, its finding is not replayed: the command that would is told."""
    common = ("--patch", "1x2", "--shape", "1x2x9", "--images", 8, "--budget", 20, "--output", tmp_path)
    call("tests.evaluate.test_audit_target:broken", *common)
    (path,) = tmp_path.glob("00-*.safetensors")
    refused = call("--replay", path)
    assert refused.exit_code == 2
    assert f"tests.evaluate.test_audit_target:broken --replay {path}" in refused.stderr.replace("\n", " ")


def test_the_named_patch_comes_first(monkeypatch):
    """Where only others break it, that is said; its own findings come before those of others."""
    plans = [Plan((1, 5, 14), (PatchThreat(1, 4),)), Plan((1, 6, 13), (PatchThreat(2, 2),))]
    monkeypatch.setattr("evaluate.audit.factory.plans", lambda *_: plans)
    options = {"threat": PatchThreat(2, 2), "image_shape": (1, 6, 13), "budget": 4}
    done = audit(factory=make("7 patch sides swapped"), **options)
    assert verdict(done).startswith(
        "2x2 patch on 1x6x13 images: no certified prediction was changed, but BROKEN for a "
    )
    assert not done.named
    done = audit(factory=make("1 off by one"), **options)
    assert verdict(done).startswith("2x2 patch on 1x6x13 images: BROKEN")
    assert done.findings[0].where == ("2x2", "1x6x13")
    told = done.as_dict()["findings"][0]
    assert (told["patch"], told["shape"]) == ("2x2", "1x6x13")


class Blanking(torch.nn.Module):
    """Writes zeros into whatever it is given, after it has looked: what it was lent is not to be believed."""

    num_classes = 2

    def forward(self, x):
        bright = x.clone().mean(dim=(1, 2, 3)) - 0.5
        with torch.no_grad():
            x.zero_()
        return torch.stack([-bright, bright], dim=1)

    def predict(self, x):
        found = (x.clone().mean(dim=(1, 2, 3)) > 0.5).long()
        x.zero_()
        return found

    def certify(self, x, threat):
        return SimpleNamespace(prediction=self.predict(x), certified=torch.ones(len(x), dtype=torch.bool))


def test_images_are_lent_as_copies():
    """What writes to them is named, and attacked on the images as they were: by its scores and by its predictions."""
    x = torch.rand(4, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    before, subject = x.clone(), AuditedCertifier(Blanking().eval(), 2)
    for ask in (subject, subject.predict, lambda own: subject.certify(own, PatchThreat(1, 1))):
        ask(x)
        assert torch.equal(x, before)
    done = audited(Blanking().eval(), budget=50)
    assert {("inputs", "inconsistent"), ("attack", "broken certificate")} <= {
        (one.check, one.severity) for one in done.findings
    }


def test_answers_are_copies():
    """A certifier that fills one array again and again does not change what it said before."""

    class Reusing(Bright):
        def __init__(self):
            super().__init__()
            self.kept = SimpleNamespace(prediction=np.zeros(1, int), certified=np.zeros(1, bool))

        def certify(self, x, threat):
            self.kept.certified[:] = np.asarray(x).mean() > 0.5
            return self.kept

    subject = AuditedCertifier(Reusing(), 2)
    first = subject.certify(torch.ones(1, 1, 2, 2), PatchThreat(1, 1))
    subject.certify(torch.zeros(1, 1, 2, 2), PatchThreat(1, 1))
    assert bool(first.certified[0])


def test_replay_of_what_another_version_wrote_is_refused(tmp_path):
    """A file with a finding's words that lacks what shows it is one clear line."""
    from safetensors.torch import save_file

    from robustpatch.errors import InvalidInput

    path = tmp_path / "00-x.safetensors"
    save_file({"y": torch.zeros(1)}, path, metadata={"finding": json.dumps({"check": "x"})})
    with pytest.raises(InvalidInput, match="no finding of an audit"):
        replay(path, Bright())

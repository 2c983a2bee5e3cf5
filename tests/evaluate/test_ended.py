"""How commands end when somebody's code, or a signal, would end them."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from typer.testing import CliRunner

from evaluate.audit.__main__ import app as audit
from evaluate.cli.command import status_of
from evaluate.runs.worker import Worker
from robustpatch.train import app as train
from tests.evaluate.calls import call

MODEL = """
import sys, torch
class Net(torch.nn.Module):
    num_classes = 10
    def __init__(self):
        super().__init__()
        {init}
    def forward(self, x):
        {forward}
        return x.flatten(1)[:, :10]
    def predict(self, x):
        return self.forward(x).argmax(1)
    def certify(self, x, threat):
        {certify}
def make():
    return Net().eval()
"""
ENDS = ["sys.exit(0)", "sys.exit('enough')", "raise KeyboardInterrupt", "raise SystemExit", "raise GeneratorExit"]


def written(tmp_path, **where: str):
    """A model of the user's own that ends the program where it is told to."""
    path = tmp_path / "ending.py"
    path.write_text(MODEL.format(**{"init": "pass", "forward": "pass", "certify": "raise ValueError", **where}))
    return path


@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_the_program(tmp_path, end):
    """Status 3, whatever status it asked for, and the line that did it."""
    path = written(tmp_path, forward=end)
    found = call("--model", f"{path}:Net", "--num-images", 2, "--attacks", "none", "--output", tmp_path / "run")
    assert found.exit_code == 3
    last = " ".join(found.stderr.split("internal error: ")[1].split())
    assert last.startswith(f"{path}, line 9, in forward raised ")
    assert "let the code of a model, an attack or a data set raise an ordinary exception instead" in last


@pytest.mark.parametrize("where", ["init", "certify"])
def test_wherever_it_does_so(tmp_path, where):
    path = written(tmp_path, **{where: "sys.exit(1)"})
    found = call("--model", f"{path}:Net", "--num-images", 2, "--attacks", "none", "--output", tmp_path / "run")
    assert found.exit_code == 3
    assert f"in {'__init__' if where == 'init' else where} raised SystemExit(1)" in " ".join(found.stderr.split())


@pytest.mark.parametrize("end", ENDS[:3])
def test_a_certifier_that_ends_the_audit(tmp_path, end):
    """It is no finding, no interrupted audit, and no audit in order."""
    path = written(tmp_path, certify=end)
    given = [f"{path}:make", "--images", "1", "--output", str(tmp_path / "audit")]
    found = CliRunner().invoke(audit, given)
    assert found.exit_code == 3, found.output
    assert f"{path}, line 14, in certify raised" in " ".join(found.output.split())


@pytest.mark.parametrize(("number", "status", "word"), [(signal.SIGINT, 130, "inter"), (signal.SIGTERM, 143, "termin")])
def test_signals_end_in_order(number, status, word, capsys):
    """With what is open closed; the handlers of before are back: those of a program that was just started."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    others = {one: signal.signal(one, handler) for one, handler in usual.items()}
    closed: list[bool] = []

    def run(_) -> int:
        try:
            os.kill(os.getpid(), number)
            for _ in range(1000):
                pass
        finally:
            closed.append(True)
        return 0

    try:
        assert status_of(run) == status
        assert {one: signal.getsignal(one) for one in usual} == usual
    finally:
        for one, handler in others.items():
            signal.signal(one, handler)
    assert capsys.readouterr().err.startswith(f"{word}")
    assert closed == [True]


def test_a_worker_that_the_model_would_end():
    """Says whose code it was, instead of being lost and replaced."""

    class Job:
        def do(self, *_):
            raise SystemExit(7)

    worker = Worker()
    worker.job = Job()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match=r"test_ended\.py, line \d+, in do raised SystemExit\(7\)"):
        worker.do(torch.zeros(1), torch.zeros(1), 0)


def test_a_training_ends_with_the_statuses_of_all_commands(tmp_path, monkeypatch):
    """A defect is 3, with its traceback, and a call that is wrong 2, in one line."""

    def broken(*_, **__):
        raise RuntimeError("broken")

    monkeypatch.setattr("robustpatch.data.images.load_images", broken)
    assert CliRunner().invoke(train, ["--output", str(tmp_path / "a")]).exit_code == 3
    found = CliRunner().invoke(train, ["--output", str(tmp_path / "a"), "--device", "none"])
    assert found.exit_code == 2
    assert len(found.stderr.splitlines()) == 1

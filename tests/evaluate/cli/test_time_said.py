"""Time is said before it is spent, and while it is."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace

import torch
from rich.console import Console

from attacks import PatchPGD, standard
from evaluate.attack_vs_cert import _long
from evaluate.cli.command import showing, time_left
from evaluate.runs import estimate
from evaluate.runs.batch import Settings
from tests import toys


def test_a_long_run_says_so_before_it_begins(monkeypatch):
    """In one line, with what makes it shorter. Of a short one nothing is timed."""
    monkeypatch.setattr(estimate, "_cost", lambda *_: estimate._Cost(1e-3, 28))
    monkeypatch.setattr(estimate, "as_classifier", lambda model: model)
    images = type("Images", (), {"batch": lambda *_: (torch.zeros(1), None), "__len__": lambda _: 200})()
    seconds = estimate.at_most(None, images, [standard()], Settings(20))
    assert seconds == 20 * (2 * 28 * 1e-3 + 2 * 50_000 * 1e-3)
    assert estimate.at_most(None, images, [standard()], Settings(19)) == 0
    for attacks, remedy in (("standard", "--attacks quick, --budget or"), ("pgd:20", "closely; --budget or")):
        (line,) = _long(seconds, SimpleNamespace(attacks=attacks))
        assert line.startswith("this may take up to about 33 minutes: --dry-run estimates more closely")
        assert remedy in line
    assert _long(800.0, SimpleNamespace(attacks="standard")) == []


def test_lines_of_a_log_say_how_long_the_rest_may_take(monkeypatch):
    """By the images done since the start, not by those that were there; nothing in the first half minute."""
    assert time_left(0, 9, 1e4) == time_left(5, 5, 29) == time_left(10, 0, 1e4) == ""
    assert time_left(5, 5, 60) == ", about 60 seconds left"
    assert time_left(1, 59, 60) == ", about 59 minutes left"
    text, now = io.StringIO(), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with showing(Console(file=text), 100) as on_progress:
        for seconds, finished in ((0, 50), (10, 60), (100, 75), (400, 100)):
            now[0] = float(seconds)
            on_progress(finished, "certifying")
    assert text.getvalue().splitlines() == [
        "50/100 certifying",
        "60/100 certifying",
        "75/100 certifying, about 2 minutes left",
        "100/100 certifying",
    ]


def test_an_attack_tells_what_it_has_spent():
    """From the first step on; the last number is what its proposal says."""
    told = []
    model, x = toys.smoothed(), toys.images(2)
    attack = PatchPGD(steps=2, restarts=2)
    found = attack(model, x, model.predict(x), "2x2", on_spent=lambda *now: told.append(now))
    assert told == sorted(told)
    assert told[-1][0] <= int(found.evaluations.sum())
    assert told[-1][0] > 0

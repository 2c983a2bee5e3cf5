"""Certifiers for the audit's tests, audits of a few images, and the audit's command called inside this process."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from typer.testing import CliRunner

from evaluate.audit import audit
from evaluate.audit.__main__ import app
from evaluate.audit.adversarial_votes import try_votes
from evaluate.audit.dictated_attack import DictatedAttack
from evaluate.audit.finding import Tally
from evaluate.audit.harness import view_findings
from robustpatch.threats.rectangle import PatchThreat

SMALL = {"threat": PatchThreat(1, 2), "image_shape": (1, 2, 9), "images": 8, "budget": 60}
QUICK = ("--patch", "1x2", "--shape", "1x2x9", "--images", 8, "--budget", 20, "--output")
NAME = "tests.evaluate.audits:"


class Bright:
    """Bright or dark, by the number of bright columns; certified where more columns than a patch covers decide.

    Sound, in plain numpy or torch, whichever it is given. `wrong` names a bug; `before` is called at each certify with
    its number.
    """

    num_classes = 2

    def __init__(self, wrong: str = "", before=lambda n: None) -> None:
        self.wrong, self.before, self.asked, self.questions = wrong, before, 0, 0

    def _lead(self, x):
        bright = (np.asarray(x).mean(axis=(1, 2)) > 0.5).sum(axis=1)
        if self.wrong == "company":
            bright = bright + (bright.mean() > bright)
        if self.wrong == "chance":
            self.asked += 1
            bright = bright + 9 * (self.asked % 3)
        return 2 * bright - np.asarray(x).shape[3]

    def predict(self, x):
        lead = self._lead(x)
        if self.wrong == "declines":
            return np.where(np.asarray(x)[:, 0, 0, -1] > 0.97, -1, lead > 0)
        if self.wrong == "certifies to decline":
            return np.full(len(lead), -1)
        if self.wrong == "dark or nothing":
            return np.where(lead > 0, -1, 0)
        return (lead > (3 if self.wrong == "contradiction" else 0)).astype(int)

    def certify(self, x, threat):
        self.questions += 1
        self.before(self.questions)
        if self.wrong != "takes anything" and not (np.abs(np.asarray(x) - 0.5) <= 0.5).all():
            raise ValueError("no image")
        lead = self._lead(x)
        needed = 0 if self.wrong == "certifies all" else 2 * threat.count * threat.width
        if self.wrong == "one column less":
            needed -= 2
        certified = np.where(lead > 0, lead > needed, -lead >= needed)
        if self.wrong == "not the smaller":
            certified = certified & (threat.width > 1)
        if self.wrong == "writes":
            x[:, :, 0, 0] = 0
        prediction = np.full(len(lead), -1) if self.wrong == "certifies to decline" else (lead > 0).astype(int)
        if self.wrong == "dark or nothing":
            prediction, certified = np.where(lead > 0, -1, 0), lead <= 0
        return SimpleNamespace(prediction=prediction, certified=certified)


sound, broken = Bright(), Bright("one column less")


class Foreign:
    """A smoothed classifier of which nothing is known but `predict` and `certify`."""

    def __init__(self, model):
        self.num_classes, self.predict = model.num_classes, model.predict
        self.certify = lambda x, threat: model.certify(x, threat)


def audited(target, **options):
    """An audit of `target` on few small images."""
    return audit(target, **{**SMALL, **options})


def dictated(harness, threat, budget=1_000):
    """The findings of the views and of dictated votes, and the tally of the votes."""
    attack = DictatedAttack(harness, threat, Tally())
    tally = try_votes(attack, budget, torch.Generator().manual_seed(0))
    return view_findings(harness, threat) + tally.findings, tally


def seen(done):
    """The check and the severity of each finding."""
    return {(one.check, one.severity) for one in done.findings}


def call(*arguments):
    """The audit's command."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])

"""A certifier that may answer "attack", as it is: an alert breaks nothing where it is declared, a wrong class does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from evaluate.audit import audit
from evaluate.audit.certifier import AuditedCertifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat

OPTIONS = {"threat": PatchThreat(1, 2), "image_shape": (1, 2, 9), "images": 8, "budget": 60}


class Watchful:
    """Bright or dark by the number of bright columns; where columns are neither, an alert. Certified with a lead of
    more than the patch covers, or where no column is in between: what it covers is answered rightly or with an alert.
    """

    num_classes = 2

    def __init__(self, alert: int = -1, bold: bool = False) -> None:
        self.alert, self.bold = alert, bold

    def predict(self, x):
        column = np.asarray(x).mean(axis=(1, 2))
        bright = (column > 0.5).sum(axis=1)
        alarmed = ((column > 0.1) & (column < 0.9)).any(axis=1) & (not self.bold)
        return np.where(alarmed, self.alert, (2 * bright > column.shape[1]).astype(int))

    def certify(self, x, threat):
        column = np.asarray(x).mean(axis=(1, 2))
        lead = 2 * (column > 0.5).sum(axis=1) - column.shape[1]
        needed = 2 * threat.count * threat.width - (2 if self.bold else 0)
        certified = np.where(lead > 0, lead > needed, -lead >= needed)
        return SimpleNamespace(prediction=(lead > 0).astype(int), certified=certified)


@pytest.mark.parametrize(("alert", "alerts"), [(-1, True), (2, True), (2, 2), (-7, -7)])
def test_an_alert_breaks_nothing(alert, alerts):
    assert audit(Watchful(alert), alerts=alerts, **OPTIONS).verdict == "held"
    assert audit(Watchful(alert, bold=True), alerts=alerts, **OPTIONS).verdict == "broken"


def test_undeclared_it_does():
    assert audit(Watchful(), **OPTIONS).verdict == "broken"


def test_who_says_that_it_is_randomized_may_abstain():
    watchful = Watchful()
    watchful.randomized = True
    assert audit(watchful, **OPTIONS).verdict == "held"


@pytest.mark.parametrize("alerts", [0, 1])
def test_an_alert_is_no_class(alerts):
    with pytest.raises(InvalidInput, match="that is no class"):
        AuditedCertifier(Watchful(), 2, alerts=alerts)

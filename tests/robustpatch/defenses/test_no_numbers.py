"""Networks whose outputs are no numbers: no defense makes a class of them, nor a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustpatch.defenses import Defended, Defense, known_defenses, parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import toys

ONE = PatchThreat(1, 1)
OPTIONS = {"patchcleanser": ":masks=2,patch=1x1", "patchguard": ":window=1x1"}
OPTIONS["patchguard-alerts"] = ":window=1x1,threshold=1"


def spoiled(value: float, classes: slice, channels: int = 1) -> nn.Module:
    """A linear network with outputs of `value` for some classes."""
    network = toys.linear(channels)
    network[1].bias.data[classes] = value
    return network


@dataclass(frozen=True)
class Nothing(Defense):
    name: ClassVar[str] = "nothing"

    def wrap(self, network, *, num_classes):
        return Defended(network, self, num_classes=num_classes)


def defended(name: str, value: float, classes: slice) -> nn.Module:
    """The defense of that name around such a network, or "undefended", or "smoothed"."""
    if name == "undefended":
        return Defended(spoiled(value, classes), Nothing(), num_classes=toys.CLASSES).eval()
    smoothed = toys.smoothed(spoiled(value, classes, channels=2))
    if name == "smoothed":
        return smoothed
    defense = parse_defense(name + OPTIONS.get(name, ""))
    network = smoothed if name.startswith("patchguard") else spoiled(value, classes)
    return defense.wrap(network, num_classes=toys.CLASSES).eval()


NAMES = ["undefended", "smoothed", *known_defenses()]
MANY_VIEWS = ("smoothed", "patchcleanser", "patchguard", "patchguard-alerts", "minority-reports")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "classes"),
    [(torch.nan, slice(0, 1)), (torch.nan, slice(None)), (torch.inf, slice(1, 3)), (-torch.inf, slice(None))],
    ids=["one NaN", "all NaN", "+inf", "all -inf"],
)
def test_there_is_no_prediction(name, value, classes):
    """Refused with the remedy: by `certify`, where there is one, and by `predict` where that looks at the image as it
    is. What looks at many views abstains: a patch may have overflown them.
    """
    model, x = defended(name, value, classes), toys.images()
    if hasattr(model, "certify"):
        with pytest.raises(InvalidInput, match=r"NaN|logits differ|mend"):
            model.certify(x, ONE)
    if name in MANY_VIEWS:
        assert model.predict(x).tolist() == [-1] * len(x)
    else:
        with pytest.raises(InvalidInput, match=r"mend .*a division by 0\? an overflow"):
            model.predict(x)


@pytest.mark.parametrize("name", NAMES)
def test_a_class_may_be_ruled_out(name):
    """All but one at -inf: that one is predicted; where a guard of logits needs numbers, nothing is certified."""
    model, x = defended(name, -torch.inf, slice(0, 3)), toys.images()
    assert model.predict(x).tolist() == [3] * len(x)
    if name == "patchcleanser":
        with pytest.raises(InvalidInput, match=r"NaN|logits differ"):
            model.certify(x, ONE)

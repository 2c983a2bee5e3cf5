"""--defense shades:levels=4: the network sees every pixel rounded to one of a few shades. Proves nothing."""

from dataclasses import dataclass
from typing import ClassVar

from robustpatch.attacks.surfaces import WholeView, whole_view_class

from robustpatch.defenses import Defended, Defense


@dataclass(frozen=True)
class Shades(Defense):
    """The option of the command line and the values it may take."""

    name: ClassVar[str] = "shades"
    levels: int = 4

    def wrap(self, network, *, num_classes):
        return Shaded(network, self, num_classes=num_classes)


class Shaded(Defended):
    """The network's answer to the rounded image. Rounding leaves attacks no gradient."""

    def forward(self, x):
        steps = self.defense.levels - 1
        return self.network((x * steps).round() / steps)


class ThroughRounding(WholeView):
    """The adaptive attack: it climbs the network itself, and asks the defense for the answer."""

    def __call__(self, x_adv):
        objective = self.value(self.classifier.network(x_adv))
        return objective, self.classifier(x_adv.detach()).argmax(dim=1)


@whole_view_class.register
def _(classifier: Shaded) -> type[WholeView]:
    return ThroughRounding

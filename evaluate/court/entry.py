"""One published certifier on the docket: what it claims, what was read of it, and the two forms that are tried."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from evaluate.audit.dictated_base import Logits
from evaluate.audit.harness import Factory
from robustpatch.threats.rectangle import PatchThreat

Size = tuple[tuple[int, int, int], PatchThreat, int]  # image, patch, classes


@dataclass(frozen=True)
class Witness:
    """A counterexample written down: the logits of the clean views and of those that a patch at `corner` changes, in
    the order in which the base is shown them. It counts for nothing unless the certificate is seen to fall.
    """

    size: Size
    corner: tuple[int, int]
    clean: tuple[Logits, ...]
    patched: tuple[Logits, ...]


@dataclass(frozen=True)
class Entry:
    """A certifier of the literature.

    Attributes:
        module: of this package, with `printed` and, where there is a fault, `repaired`, factories for the audit.
        claim: what its certificate is to mean. fault: what is wrong with it as printed; "" where nothing is known.
        repair: what the repaired rule does otherwise. read: where the rule was learnt. unknown: what could not be.
        adapted: what was changed so that an audit can ask it.
        sizes: images, patches and numbers of classes, the smallest first, on which a counterexample is looked for.
        witness: one for a search that finds none.
        alerts: whether it may answer -1, "attack".
    """

    module: str
    title: str
    claim: str
    read: str
    printed: Factory
    sizes: tuple[Size, ...]
    fault: str = ""
    repair: str = ""
    repaired: Factory | None = None
    unknown: str = ""
    adapted: str = ""
    alerts: bool = False
    witness: Witness | None = None

    @property
    def forms(self) -> tuple[tuple[str, Factory], ...]:
        """The names of its forms in the module, and their factories."""
        repaired = () if self.repaired is None else (("repaired", self.repaired),)
        return (("printed", self.printed), *repaired)

    def named(self, form: str) -> str:
        """The name of that form on the audit's command line."""
        return f"robustpatch.evaluate.court.{self.module}:{form}"


def sizes(*shown: str, classes: tuple[int, ...] = (2, 3)) -> tuple[Size, ...]:
    """The sizes written as "1x2x9/1x2", image and patch, each with every number of classes."""
    found: list[Size] = []
    for text in shown:
        image, patch = ([int(n) for n in part.split("x")] for part in text.split("/"))
        found += [((image[0], image[1], image[2]), PatchThreat(patch[0], patch[1]), k) for k in classes]
    return tuple(found)


def claim(prediction: Tensor, certified: Tensor) -> SimpleNamespace:
    """Makes the answer of `certify`."""
    return SimpleNamespace(prediction=prediction, certified=certified)


def one_patch(threat: Any, square: bool = False) -> tuple[int, int]:
    """Height and width of the one patch. Raises `ValueError` for several, or where it has to be `square`."""
    if threat.count != 1 or (square and threat.height != threat.width):
        raise ValueError(f"the paper certifies against one {'square ' * square}patch, not {threat}")
    return threat.height, threat.width

"""The rules of a gate, from a TOML file: floors, a stored run, conversions, and the run to make if none is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from evaluate.cli.options import Options
from evaluate.gate.paired import LEVEL
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.options import options, read, table_of
from robustpatch.storage.toml import read_toml

Measure = Literal["clean", "certified", "certified (margin)", "under attack"]
_PERCENT = Annotated[float, Field(ge=0, le=100)]
EACH = "each"  # of the classes


@options
class Floor:
    """A share of the images, in percent, that a run has to reach: those that keep what `measure` says.

    With `side`, those certified against a square of so many pixels a side, whatever the run's own threat. `label`: of
    the images of one class, or of "each" class that there are images of. `threat`: of the run against that one, or,
    under attack, of that alternative of several. `bound`: not the share itself has to reach it, but the lower end of
    its exact 95% interval.
    """

    least: _PERCENT
    measure: Measure = "certified"
    label: str | None = None
    threat: str | None = None
    side: Annotated[int, Field(ge=1, le=2**20)] | None = None
    bound: bool = False


@options
class Baseline:
    """A stored run on the same images, below which no `measures` may fall.

    `below`: by how many points of accuracy it may be worse (see `paired.Drop`). `level`: the chance of a gate to fail
    for a drop that there is not, over all measures. `catch`: the drop in points that has to be seen with a chance of
    95%; a run of too few images for that fails.
    """

    run: str
    measures: Annotated[list[Measure], Field(min_length=1, max_length=4)] = field(default_factory=lambda: ["certified"])
    below: _PERCENT = 0.0
    level: Annotated[float, Field(ge=1e-9, le=0.5)] = LEVEL
    catch: _PERCENT | None = None


@options
class Conversion:
    """A conversion of the model after which every certificate is made again; `lost`: in percent of those that there
    were, how many may be lost."""

    to: Literal["bfloat16", "int8", "onnx"]
    lost: _PERCENT = 0.0


@dataclass(frozen=True)
class Gate:
    """All rules. `held`: whether every certificate has to have been attacked, too; a broken one never passes."""

    title: str = "robustness"
    held: bool = False
    floors: tuple[Floor, ...] = ()
    baseline: Baseline | None = None
    conversions: tuple[Conversion, ...] = ()
    run: Options | None = None


_TABLES = Annotated[list[dict[str, Any]], Field(max_length=1_000)]
_GATE = table_of(
    {
        "title": Annotated[str, Field(max_length=200)],
        "held": bool,
        "floor": _TABLES,
        "baseline": dict[str, Any],
        "convert": _TABLES,
        "run": dict[str, Any],
    }
)


def read_gate(path: str | Path) -> Gate:
    """The rules in a TOML file: title, held, [[floor]], [baseline], [[convert]] and [run]. Raises `InvalidInput`."""
    where = f"gate {one_line(path, 200)}: "
    given = read(_GATE, read_toml(path, "gate"), where)
    floors, conversions = given.get("floor", []), given.get("convert", [])
    found = Gate(
        title=given.get("title", Gate.title),
        held=given.get("held", Gate.held),
        floors=tuple(read(Floor, one, f"{where}[[floor]] {n}: ") for n, one in enumerate(floors, 1)),
        baseline=read(Baseline, given["baseline"], f"{where}[baseline]: ") if "baseline" in given else None,
        conversions=tuple(read(Conversion, one, f"{where}[[convert]] {n}: ") for n, one in enumerate(conversions, 1)),
        run=read(Options, given["run"], f"{where}[run]: ") if "run" in given else None,
    )
    for n, floor in enumerate(found.floors, 1):
        if floor.side is not None and (floor.measure, floor.threat) != ("certified", None):
            raise InvalidInput(
                f"{where}[[floor]] {n}: side is {floor.side}, of what is certified against any threat; "
                "leave measure and threat out"
            )
    if not (found.floors or found.baseline or found.conversions or found.held):
        raise InvalidInput(f"{where}it has no rule; give a [[floor]], a [baseline], a [[convert]] or held = true")
    return found

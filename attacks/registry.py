"""Attacks by name: what `--attacks` means."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from inspect import isfunction
from typing import Any

from attacks.art.from_art import FromART
from attacks.base import PatchAttack
from attacks.ensemble import Ensemble
from attacks.exhaustive import ExhaustivePGD
from attacks.lavan import LaVAN
from attacks.occlusion import ROA, Control
from attacks.pgd import PatchPGD
from attacks.sparse_rs import SparseRS
from attacks.undefended import Undefended
from attacks.universal import Universal
from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.plugins import load_plugin, plugin_names


def quick() -> Ensemble:
    """A look in a minute: PGD at a few placements, then all placements within 10,000 evaluations an image."""
    return Ensemble((PatchPGD(restarts=8), ExhaustivePGD()), "quick", budget=10_000, shares=(1.0, 4.0))


def standard() -> Ensemble:
    """The evaluator's default, 50,000 evaluations an image at the most, without a parameter to be chosen.

    Guided PGD, then all placements by gradient until four fifths are spent, then a black box, which gradients that lie
    do not mislead. In order of cost, each on the images not yet broken.
    """
    members = (PatchPGD(), ExhaustivePGD(), SparseRS())
    return Ensemble(members, "standard", budget=50_000, shares=(1.0, 8.0, 1.0))


# Those of this package; others have an entry point (`robustpatch.plugins`): a callable that makes the attack, with an
# attribute `number` where one of its arguments may stand behind a colon.
# name -> (the attack without a number; with one, what the number is)
KNOWN: dict[str, tuple[Callable[..., PatchAttack], str | None]] = {
    "standard": (standard, None),
    "quick": (quick, None),
    "pgd": (PatchPGD, "restarts"),
    "pgd-published": (PatchPGD.published, "restarts"),
    "exhaustive": (ExhaustivePGD, "stride"),
    "sparse-rs": (SparseRS, "queries"),
    "roa": (ROA, None),
    "roa-gradient": (lambda: ROA(search="gradient", stride=3), None),
    "lavan": (LaVAN, "target"),
    "universal": (Universal, "target"),
    "art-pgd": (FromART.pgd, "tries"),
    "art-patch": (FromART.patch, "tries"),
    "grey": (lambda **tries: Control(content="grey", **tries), "tries"),
    "noise": (lambda **tries: Control(content="noise", **tries), "tries"),
    "natural": (lambda **tries: Control(content="natural", **tries), "tries"),
}
_IGNORING = "undefended:"
Own = Callable[[str], Any]  # finds the object FILE.py:NAME


def names() -> str:
    """The names that `parse_attacks` reads, for a message."""
    known = [f"{name}[:{number.upper()}]" if number else name for name, (_, number) in KNOWN.items()]
    return ", ".join([*known, *plugin_names("attacks"), f"{_IGNORING}ATTACK", "FILE.py:NAME"])


def _known(name: str) -> tuple[Callable[..., PatchAttack] | None, str | None]:
    """How the attack of that name is made, and which of its arguments the number is; None where there is none."""
    if name in KNOWN:
        return KNOWN[name]
    make = load_plugin("attacks", name)
    return make, getattr(make, "number", None)


def parse_attacks(
    text: str, *, steps: int | None = None, budget: int | None = None, own: Own | None = None
) -> list[PatchAttack]:
    """Read "standard", "pgd:20,exhaustive,sparse-rs:1000", …, or "none". Raises `InvalidInput`.

    "undefended:pgd:20" is the attack after the first colon on the network inside a defense. "FILE.py:NAME" is an attack
    of the user's own, which `own` finds; without it, as where a text is out of a file, it is refused. `steps` replaces
    the gradient steps of those that have them, an ensemble's members too; `budget` is the evaluations of each on an
    image.
    """
    found: list[PatchAttack] = []
    climbing = False
    for part in () if text.strip() == "none" else text.split(","):
        wanted = part.strip().removeprefix(_IGNORING)
        attack = _own(wanted, own) if ".py:" in wanted else _by_name(wanted, text)
        attack = attack if budget is None else _within(attack, budget)
        made = attack if steps is None else _with_steps(attack, steps)
        climbing |= made is not attack
        found.append(made if wanted == part.strip() else Undefended(made))
    if steps is not None and not climbing:
        raise InvalidInput(f"steps is {steps}, but none of the attacks {text!r} has any; drop --steps")
    if len({attack.name for attack in found}) < len(found):
        raise InvalidInput(f"attacks is {text!r}, which names one attack twice; drop one")
    return found


def _by_name(wanted: str, text: str) -> Any:
    """The attack of this package, or of an installed one, that is called so in the text."""
    kind, colon, number = wanted.partition(":")
    make, parameter = _known(kind)
    digits = number.isascii() and number.isdecimal() and len(number) <= 9
    if make is None or (colon and (parameter is None or not digits)):
        raise InvalidInput(
            f"attacks is {one_line(repr(text), 200)}, and {one_line(repr(wanted), 80)} is none; known are "
            f'{names()}, numbers up to nine digits, or "none" alone'
        )
    return make(**{parameter: int(number)}) if colon and parameter else make()


def _own(text: str, find: Own | None) -> Any:
    """The attack that `find` finds under the name FILE.py:NAME: an object, its class, or a function that makes it."""
    if find is None:
        raise InvalidInput(
            f"attacks is {one_line(repr(text), 200)}, which is code of your own; name it on the command line, or pass "
            "the object itself"
        )
    found = find(text)
    attack = found() if isinstance(found, type) or isfunction(found) else found
    lacking = [name for name in ("name", "touched_only", "unpruned", "check", "__call__") if not hasattr(attack, name)]
    if lacking:
        raise InvalidInput(
            f"attacks is {text!r}, a {type(attack).__name__} without {', '.join(lacking)}; name an attack, its class, "
            "or a function that returns one (docs/tutorials/attack.md writes one in ten lines)"
        )
    return attack


def _within(attack: Any, budget: int) -> Any:
    """The attack with that budget."""
    if "budget" not in _fields(attack):
        raise InvalidInput(
            f"budget is {budget}, but attack {attack.name} has no field budget; make it a dataclass that has one, or "
            "drop --budget"
        )
    return replace(attack, budget=budget)


def _with_steps(attack: Any, steps: int) -> Any:
    """The attack with that many gradient steps, of an ensemble its members; itself where there are none."""
    if isinstance(attack, Ensemble):
        members = tuple(_with_steps(member, steps) for member in attack.members)
        return attack if all(map(operator.is_, members, attack.members)) else replace(attack, members=members)
    return replace(attack, steps=steps) if "steps" in _fields(attack) else attack


def _fields(attack: Any) -> set[str]:
    return {field.name for field in fields(attack)} if is_dataclass(attack) else set()

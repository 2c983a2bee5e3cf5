"""Settings: frozen dataclasses whose types and ranges stand in their annotations, checked wherever values come from.

The command line, TOML files, a checkpoint's configuration, "name:option=value" and Python calls all end here. pydantic
checks, strictly: no text for a number, no true for 1, no NaN. A refusal is one line that names option, value, remedy.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from typing_extensions import TypedDict, is_typeddict  # typing's own, for pydantic, from Python 3.12 on

from robustpatch.cli.text import one_line, why_no_text
from robustpatch.errors import InvalidInput

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
OPEN = ConfigDict(strict=True, extra="allow")  # keys that are not known are somebody else's
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Weight = Annotated[float, Field(ge=0)]
T = TypeVar("T")
_NEEDED = {  # what pydantic calls the type that a value should have -> what to give
    "int": "a whole number",
    "float": "a finite number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "path": "a text",
    "dict": "a table",
    "list": "a list",
    "tuple": "a list",
    "sequence": "a list",
}
_BOUNDS = {
    "greater_than_equal": ("it must be at least", "ge"),
    "greater_than": ("it must be above", "gt"),
    "less_than": ("it must be below", "lt"),
    "less_than_equal": ("it must be at most", "le"),
    "too_short": ("the fewest are", "min_length"),
    "too_long": ("the most are", "max_length"),
    "string_too_long": ("the most characters are", "max_length"),
}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def options(kind: type[T]) -> type[T]:
    """Makes a frozen dataclass, of keyword arguments, that refuses wrong values with `InvalidInput`."""
    made: Any = checked_dataclass(frozen=True, kw_only=True, config=STRICT)(kind)
    unguarded = made.__init__

    @wraps(unguarded)
    def guarded(self: Any, **values: Any) -> None:
        with _refusals("", made):
            unguarded(self, **values)

    made.__init__ = guarded
    return made


def table_of(hints: Mapping[str, Any], config: ConfigDict = STRICT) -> Any:
    """A type for `read`: tables in which any of these names may be left out."""
    kind: Any = TypedDict("table", dict(hints), total=False)  # type: ignore[misc]
    kind.__pydantic_config__ = config
    return kind


def names_of(kind: Any) -> list[str]:
    """The names of the settings of a dataclass or a table."""
    return list(kind.__annotations__) if is_typeddict(kind) else [own.name for own in fields(kind)]


@cache
def some_of(kind: type, *names: str) -> Any:
    """A type for `read`: tables of some settings of a dataclass, by default of all, any of which may be left out."""
    hints = get_type_hints(kind, include_extras=True)
    return table_of({name: hints[name] for name in names or names_of(kind)})


@cache
def arguments_of(make: Callable[..., Any], *given: str) -> Any:
    """A type for `read`: tables of a function's or class's arguments but for those that are `given` by others."""
    hints = get_type_hints(make.__init__ if inspect.isclass(make) else make, include_extras=True)
    return table_of({name: hints.get(name, Any) for name in inspect.signature(make).parameters if name not in given})


def read(kind: type[T] | Any, values: Mapping[str, Any], where: str = "") -> T:
    """The settings in `values`, of the dataclass or table `kind`. Raises `InvalidInput`, in a line that begins with
    `where`.
    """
    make: Any = kind
    with _refusals(where, kind):
        return make(**values) if is_dataclass(kind) else _adapter(kind).validate_python(dict(values))


def read_texts(kind: type[T], values: Mapping[str, str], where: str = "") -> T:
    """The same of a dataclass's settings as words, as somebody types them."""
    with _refusals(where, kind):
        made = _adapter(kind).validate_strings(dict(values))
        for name in values:
            check_value(name, getattr(made, name))
        return made


def check_value(name: str, value: Any) -> None:
    """Refuse, with `InvalidInput`, a value of an option that no computer has a use for, whatever the option: whole
    numbers of more than 63 bits, characters that no file's name can hold, names longer than any file's.
    """
    for one in value if isinstance(value, list | tuple) else [value]:
        shown = f"{name} is {one_line(_shown(one), 60)}"
        if isinstance(one, int) and abs(one) >= 2**63:
            raise InvalidInput(f"{shown}, a number of more than 63 bits; give one below 2^63")
        if isinstance(one, str | Path) and (reason := why_no_text(str(one))):
            raise InvalidInput(f"{shown}, which is {reason}")
        if isinstance(one, str | Path) and not _can_be_said(str(one)):
            raise InvalidInput(f"{shown}, with a character that no name has; leave it out")
        if isinstance(one, Path) and any(len(os.fsencode(part)) > 255 for part in one.parts):
            raise InvalidInput(f"{shown}, longer than any file's name; give one of at most 255 bytes")


def _can_be_said(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # unknown to the locale
        return False


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@contextmanager
def _refusals(where: str, kind: Any) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidInput(where + _told(first, names_of(kind))) from None
    except InvalidInput as error:
        raise InvalidInput(f"{where}{error}") from error


def _told(error: Any, known: list[str]) -> str:
    """One line on the first value that pydantic refuses: its place, itself, and what to do."""
    kind, context = error["type"], error.get("ctx", {})
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in error["loc"]).lstrip(".")
    if kind == "value_error":
        said = str(context["error"])
        return said if said.startswith(place) else f"{place}: {said}"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        have = f"known are {', '.join(known)}" if known else "there are none"
        return f"{one_line(place, 200)} is no option here; {have if len(error['loc']) == 1 else 'leave it out'}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{place} is missing; give it"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        needed = f"{words} {_number(context[key])}"
    elif kind == "literal_error":
        needed = f"use {context['expected']}"
    else:
        wanted = _NEEDED.get(kind) or _NEEDED.get(kind.partition("_")[0])  # int_type, int_parsing, int_from_float, …
        needed = one_line(error["msg"], 200) if wanted is None else f"give {wanted}"
    return f"{place} is {_shown(error['input'])}; {needed}"


def _number(bound: float) -> str:
    power = int(abs(bound)).bit_length() - 1
    return f"{'-' * (bound < 0)}2^{power}" if power >= 24 and abs(bound) == 2**power else f"{bound:g}"


def _shown(value: Any) -> str:
    try:
        return one_line(repr(value), 80)
    except (ValueError, RecursionError):  # Python writes no number of more than 4,300 digits
        return "more than can be written"

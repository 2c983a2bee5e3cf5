"""The command line of a function: its parameters, and the fields of the settings that it takes, become options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from rich.console import Console
from typer.models import ParameterInfo

from robustpatch.cli.status import RESUMED, status_of


def takes(run: Callable[..., Any], *, interrupted: str = RESUMED) -> Callable[..., Any]:
    """A command line for typer of a function that returns the exit status; see `status_of`.

    A parameter that is annotated with a class of settings (`robustpatch.options`) is made of an option for each of its
    fields, one annotated `Console` is a console on stderr, and any other is an option itself.
    """
    if is_dataclass(run):  # @takes(Options) of a function that takes them
        return takes
    plain, about = get_type_hints(run), get_type_hints(run, include_extras=True)
    own = inspect.signature(run).parameters
    kinds: dict[str, Any] = {name: plain[name] for name in own if is_dataclass(plain[name])}
    consoles = [name for name in own if plain[name] is Console]
    shown = [
        _parameter(name, one.default, plain[name], about[name])
        for name, one in own.items()
        if name not in {*kinds, *consoles}
    ]
    for kind in kinds.values():
        plain, about = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        shown += [_parameter(one.name, _default(one), plain[one.name], about[one.name]) for one in fields(kind)]

    @wraps(run)
    def main(**values: Any) -> None:
        def work(errors: Console) -> int:
            made = {
                name: kind(**{one.name: values.pop(one.name) for one in fields(kind)}) for name, kind in kinds.items()
            }
            return run(**values, **made, **dict.fromkeys(consoles, errors))

        raise typer.Exit(status_of(work, interrupted))

    parameters = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in shown]
    main.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    main.__annotations__ = {one.name: one.annotation for one in parameters}
    return main


def completing(*words: str) -> dict[str, Any]:
    """The arguments of `typer.Option` that have a shell offer these words."""
    return {"autocompletion": lambda incomplete: [word for word in words if word.startswith(incomplete)]}


def _stated(hint: Any) -> list[Any]:
    """Everything that an annotation says beside the type, of `Annotated[Annotated[int, …] | None, …]` too."""
    if get_origin(hint) is Annotated:
        kind, *stated = get_args(hint)
        return [*_stated(kind), *stated]
    return [one for kind in get_args(hint) for one in _stated(kind)]


def _default(one: Field[Any]) -> Any:
    default = one.default if one.default_factory is MISSING else one.default_factory()
    return Parameter.empty if default is MISSING else default


def _parameter(name: str, default: Any, kind: Any, hint: Any) -> Parameter:
    """The option or argument of a field, whose range its class knows, or of a parameter. A flag that is off has no name
    to turn it off. A text in the annotation says what a default of None stands for.
    """
    stated = _stated(hint)
    info = next((copy(info) for info in stated if isinstance(info, ParameterInfo)), typer.Option())
    info.show_default = next((text for text in stated if isinstance(text, str)), info.show_default)
    if default is False and not info.param_decls:
        info.param_decls = (f"--{name.replace('_', '-')}",)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])

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
    hints = get_type_hints(run, include_extras=True)
    own = inspect.signature(run).parameters
    kinds = {name: hints[name] for name in own if is_dataclass(hints[name])}
    consoles = [name for name in own if hints[name] is Console]
    shown = [one.replace(annotation=hints[name]) for name, one in own.items() if name not in {*kinds, *consoles}]
    for kind in kinds.values():
        plain, about = get_type_hints(kind), get_type_hints(kind, include_extras=True)
        shown += [_parameter(one, plain[one.name], about[one.name]) for one in fields(kind)]

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


def _parameter(one: Field[Any], kind: Any, hint: Any) -> Parameter:
    """The option or argument of a field, whose range its class knows. A flag that is off has no name to turn it off."""
    default = one.default if one.default_factory is MISSING else one.default_factory()
    default = Parameter.empty if default is MISSING else default
    stated = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    info = next((copy(info) for info in stated if isinstance(info, ParameterInfo)), typer.Option())
    if default is False and not info.param_decls:
        info.param_decls = (f"--{one.name.replace('_', '-')}",)
    return Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info])

"""The one layer of settings: strict types and ranges, and a refusal in one line that names option, value and remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, Strict
from rich.console import Console
from typer.testing import CliRunner

from robustpatch.cli.arguments import takes
from robustpatch.cli.command_line import Command
from robustpatch.errors import InvalidInput
from robustpatch.options import STRICT, Count, Weight, arguments_of, options, read, read_texts, some_of, table_of


@options
class Inner:
    depth: Count = 1


@options
class Toy:
    epochs: Annotated[Count, typer.Option(help="Rounds.")] = 3
    lr: Annotated[float, Field(ge=0, lt=1)] = 0.5
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    way: Literal["sgd", "adamw"] = "sgd"
    fast: Annotated[bool, typer.Option(help="Or slow.")] = False
    name: str | None = None
    place: Annotated[Path, Strict(False)] | None = None
    sizes: list[Count] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.epochs == 7:
            raise InvalidInput("epochs is 7; give another number")


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs is 0; it must be at least 1"),
    ({"epochs": True}, "epochs is True; give a whole number"),
    ({"epochs": 1.0}, "epochs is 1.0; give a whole number"),
    ({"epochs": "3"}, "epochs is '3'; give a whole number"),
    ({"epochs": None}, "epochs is None; give a whole number"),
    ({"epochs": 2**63}, r"epochs is 9223372036854775808; it must be below 2\^63"),
    ({"epochs": 2**20_000}, r"epochs is more than can be written; it must be below 2\^63"),
    ({"epochs": 7}, "epochs is 7; give another number"),
    ({"lr": 10**400}, "lr is 1000+…; give a finite number"),
    ({"lr": float("nan")}, "lr is nan; give a finite number"),
    ({"lr": float("inf")}, "lr is inf; give a finite number"),
    ({"lr": True}, "lr is True; give a finite number"),
    ({"lr": 1}, "lr is 1; it must be below 1"),
    ({"share": 0}, "share is 0; it must be above 0"),
    ({"share": 1.5}, "share is 1.5; it must be at most 1"),
    ({"way": "lamb"}, "way is 'lamb'; use 'sgd' or 'adamw'"),
    ({"fast": 1}, "fast is 1; give true or false"),
    ({"fast": "yes"}, "fast is 'yes'; give true or false"),
    ({"name": 3}, "name is 3; give a text"),
    ({"name": "x" * 300, "place": 3}, "place is 3; give a text"),
    ({"sizes": 3}, "sizes is 3; give a list"),
    ({"sizes": [1, "2"]}, r"sizes\[1\] is '2'; give a whole number"),
    ({"rate": 1}, "rate is no option here; known are epochs, lr, share, way, fast, name, place, sizes"),
    ({"a\nb": 1}, "a b is no option here"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_wrong_value_is_refused_with_its_name_and_a_remedy(values, message):
    """When it is made, and when it is read from a table, of which the line then tells where it is."""
    with pytest.raises(InvalidInput, match=f"^{message}") as made:
        Toy(**values)
    with pytest.raises(InvalidInput, match=rf"^file x: {message}") as found:
        read(Toy, values, "file x: ")
    for error in (made, found):
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 300


def test_right_values_are_kept_as_their_types():
    toy = read(Toy, {"epochs": 2, "lr": 0, "place": "a/b", "sizes": [1, 2]})
    assert (toy.epochs, toy.lr, toy.place, toy.sizes) == (2, 0.0, Path("a/b"), [1, 2])
    assert isinstance(toy.lr, float)
    assert replace(toy, epochs=4) == Toy(**{**asdict(toy), "epochs": 4})
    with pytest.raises(InvalidInput, match="epochs is 0"):
        replace(toy, epochs=0)
    with pytest.raises(AttributeError):
        toy.epochs = 5  # type: ignore[misc]


def test_some_settings_of_a_table():
    """Any may be left out, and no other is known; nested tables are named by their place."""
    assert read(some_of(Toy), {"lr": 0.25}) == {"lr": 0.25}
    assert read(some_of(Toy, "lr"), {}) == {}
    for kind, values, message in (
        (some_of(Toy, "lr"), {"epochs": 3}, "epochs is no option here; known are lr"),
        (table_of({}), {"a": 1}, "a is no option here; there are none"),
        (table_of({"run": list[table_of({"lr": Weight})]}), {"run": [{}, {"lr": -1}]}, r"run\[1\]\.lr is -1; it must"),
        (table_of({"run": dict[str, Any]}), {"run": 3}, "run is 3; give a table"),
        (
            table_of({"a": Annotated[list[int], Field(max_length=2)]}),
            {"a": [1, 2, 3]},
            r"a is \[1, 2, 3\]; the most are 2",
        ),
    ):
        with pytest.raises(InvalidInput, match=f"^{message}"):
            read(kind, values)


def test_the_arguments_of_a_function_or_class():
    def make(*, size: int, widths: Sequence[Count] = (1,), free=None) -> None: ...

    kind = arguments_of(make, "size")
    assert read(kind, {"widths": [3], "free": object}) == {"widths": [3], "free": object}
    for values, message in (({"size": 3}, "size is no option"), ({"widths": [0]}, r"widths\[0\] is 0; it must be")):
        with pytest.raises(InvalidInput, match=message):
            read(kind, values)


@dataclass(frozen=True)
class Words:
    """As a package of somebody else's writes a defense."""

    __pydantic_config__: ClassVar[Any] = STRICT
    often: int = 1
    by: float = 0.5
    on: bool = True

    def __post_init__(self) -> None:
        if self.often == 7:
            raise InvalidInput("often is 7")


@given(
    st.integers(-(2**60), 2**60).filter(lambda n: n != 7),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
def test_words_are_read_as_the_types_of_their_fields(often, by, on):
    made = read_texts(Words, {"often": str(often), "by": str(by), "on": str(on)})
    assert made == Words(often, by, on)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"often": "x"}, "often is 'x'; give a whole number"),
        ({"often": "9" * 300}, "often is 999.*; give one below"),
        ({"often": "9" * 5_000}, "often is '999.*; give a whole number"),
        ({"often": "7"}, "often is 7"),
        ({"by": "nan"}, "by is 'nan'; give a finite number"),
        ({"by": "1e400"}, "by is '1e400'; give a finite number"),
        ({"on": "perhaps"}, "on is 'perhaps'; give true or false"),
        ({"off": "1"}, "off is no option here; known are often, by, on"),
    ],
)
def test_wrong_words(values, message):
    with pytest.raises(InvalidInput, match=f"^here: {message}"):
        read_texts(Words, values, "here: ")


@dataclass(frozen=True, kw_only=True)
class Plain:
    names: Annotated[list[str], typer.Argument()]
    fast: bool = False


@pytest.fixture
def call():
    """A command that takes settings, an option of its own and the console, and returns them as its status says."""
    app, seen = typer.Typer(add_completion=False), []

    def main(toy: Toy, inner: Inner, out: Annotated[str, typer.Option()], errors: Console) -> int:
        """Does nothing."""
        seen.append((toy, inner, out))
        assert errors.stderr
        return 0

    app.command(cls=Command)(takes(main))

    def run(*words: str) -> tuple[Any, list[Any]]:
        seen.clear()
        return CliRunner().invoke(app, [*words]), seen

    return run


def test_the_command_line_of_settings(call):
    """Names, defaults, help and flags come from the fields; each class is made of its own."""
    done, seen = call("--out", "o", "--epochs", "4", "--fast", "--sizes", "2", "--sizes", "3", "--depth", "2")
    assert done.exit_code == 0, done.output
    assert seen == [(Toy(epochs=4, fast=True, sizes=[2, 3]), Inner(depth=2), "o")]
    told = call("--help")[0].output
    for words in ("--epochs", "Rounds.", "[default: 3]", "--fast", "--depth"):
        assert words in told
    assert "--no-fast" not in told


def test_the_command_line_of_any_dataclass():
    """Arguments, too, some of them required."""
    app, seen = typer.Typer(add_completion=False), []

    @app.command(cls=Command)
    @takes(Plain)
    def main(plain: Plain) -> int:
        seen.append(plain)
        return 0

    assert CliRunner().invoke(app, ["a", "b", "--fast"]).exit_code == 0
    assert seen == [Plain(names=["a", "b"], fast=True)]
    assert CliRunner().invoke(app, []).exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["--lr", "nan"], "lr is nan; give a finite number"),
        (["--depth", "-1"], "depth is -1; it must be at least 1"),
        (["--way", "lamb"], "--way"),
        (["--epochs", "x"], "--epochs"),
    ],
)
def test_a_wrong_word_ends_with_status_2_and_one_line(call, words, message):
    done, seen = call("--out", "o", *words)
    assert (done.exit_code, seen, done.stdout) == (2, [], "")
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr

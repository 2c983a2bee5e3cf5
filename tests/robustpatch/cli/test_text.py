"""Names and messages of others are text: on one line, with nothing that a terminal or a page obeys."""

from __future__ import annotations

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks import parse_attacks
from robustpatch.ablations.parse import parse_source
from robustpatch.cli.command_line import show_what_can_be_shown
from robustpatch.cli.text import LONGEST_SLUG, markdown, one_line, slug
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.options import check_value
from robustpatch.recipe import load_recipe
from robustpatch.storage.bounded_json import read_json, read_object
from robustpatch.storage.toml import read_toml
from robustpatch.threats.parse import parse_threat
from tests import toys

ANY = st.text(st.characters(), max_size=300)  # halves of characters, too


@given(ANY)
def test_one_line_can_be_printed(text):
    line = one_line(text)
    assert line.isprintable()
    assert len(one_line(text, 20)) <= 20
    assert one_line(line) == line


@given(ANY)
def test_slugs_are_names_anywhere(text):
    """In the folder, visible, short, and their own slugs."""
    name = slug(text)
    assert name == slug(name)
    assert Path("out", name).parent == Path("out")
    assert 0 < len(name) <= LONGEST_SLUG
    assert not name.startswith((".", "-"))
    assert Path(name).name == name not in (".", "..")


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "a b", "", "x" * 300, "-x", "a\\nb", "a\\u0000"])
def test_names_of_runs_are_slugs(name, tmp_path):
    """A name that becomes a checkpoint's file is refused where it would lie elsewhere or be hidden."""
    (tmp_path / "r.toml").write_text(f'[[run]]\nname = "{name}"\n')
    with pytest.raises(InvalidInput, match=r"name is .*; each run needs one of letters, digits"):
        load_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize(
    "text",
    [
        "run = 3",
        "run = [1]",
        "[run]",
        "defaults = 3\n[[run]]\nname = 'a'",
        "[[run]]\nname = 'a'\nstages = 3",
        "[[run]]\nname = 'a'\nstages = [1]",
        "[[run]]\nname = 'a'\nnetwork = {}",
        "[[run]]\nname = 'a'\nnetwork = {name = 3}",
        "[[run]]\nname = 'a'\nablation = 3",
        "[[run]]\nname = 'a'\nvote = 3",
        "[[run]]\nname = 'a'\nepochs = 'x'",
        "a = " + "[" * 5_000,
        "\\x00",
        "",
    ],
)
def test_recipes_of_other_types(text, tmp_path):
    """Refused, with the file named."""
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InvalidInput, match=r"r\.toml"):
        load_recipe(tmp_path / "r.toml")


def test_toml_of_no_file(tmp_path):
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "none"):
        with pytest.raises(InvalidInput, match=f"^recipe is {path}"):
            read_toml(path, "recipe")


def test_markdown_shows_names_as_they_are():
    assert markdown("<img src=x> | `a` _b_ [c](d)\n# e") == r"\<img src=x\> \| \`a\` \_b\_ \[c\](d) # e"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5_000, "{", b"\xff", "[" + "0," * 50 + "0]"])
def test_json_is_bounded(text):
    with pytest.raises(ValueError, match=r"."):
        read_json(text, most=100) if len(text) < 200 else read_json(text)
    with pytest.raises(ValueError, match="no object"):
        read_object("[]")
    assert read_object(json.dumps({"a": 1})) == {"a": 1}


@pytest.mark.parametrize("value", [2**63, -(2**63), "a\0", "\ud800", Path("\udcfc"), Path("x" * 256), ["\0"]])
def test_values_that_no_option_has(value):
    with pytest.raises(InvalidInput, match=r"^size is "):
        check_value("size", value)
    for right in (2**63 - 1, "Zürich", Path("a" * 255), None, True, 1.5, [1, "x"]):
        check_value("size", right)


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "utf-8"])
def test_a_console_that_knows_few_characters(encoding, monkeypatch):
    """Gets a dash for what it cannot show."""
    held = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(held, encoding=encoding))
    show_what_can_be_shown()
    sys.stdout.write("63% – 100% ≥ θ")
    sys.stdout.flush()
    shown = held.getvalue().decode(encoding)
    assert shown.startswith("63% – 100% ≥ θ" if encoding == "utf-8" else "63% - 100% ")
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (parse_source, "sparse:{}"),
        (parse_source, "columns:{}"),
        (parse_source, "2*grid-columns:{}"),
        (lambda text: parse_threat(text, (5, 5)), "{}"),
        (lambda text: parse_threat(text, (5, 5)), "{}%"),
        (lambda text: parse_threat(text, (5, 5)), "1.{}%"),
        (lambda text: parse_defense(text).wrap(toys.linear(1), num_classes=4), "patchcleanser:masks={}"),
        (parse_attacks, "pgd:{}"),
    ],
)
def test_numbers_longer_than_python_reads(read, text):
    """Python refuses to read 5,000 digits, with an error of its own."""
    with pytest.raises(InvalidInput, match="999"):
        read(text.format("9" * 5_000))

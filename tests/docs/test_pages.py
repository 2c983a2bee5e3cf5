"""README and the site: every block of Python runs, every command line is one that the programs take, and links lead on.

Blocks of tutorials are run by `test_tutorials`, those of the guide to the audit by `evaluate.test_audit_docs`, those of
one's own model by `evaluate.test_own_model` and `robustpatch.classifiers.test_wrap`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import pytest
import typer

from evaluate.cli.program import COMMANDS
from tests.docs.blocks import ROOT, blocks, commands, pages, run_python

ELSEWHERE = ("docs/tutorials/", "docs/audit.md", "docs/guides/models.md")
WITH_PYTHON = [
    page for page in pages() if not page.startswith(ELSEWHERE) and any(b.language == "python" for b in blocks(page))
]
SLOW = (
    "docs/guides/attacks.md",
    "docs/guides/guards.md",
    "docs/guides/reports.md",
    "docs/guides/threats.md",
    "docs/start.md",
)
OF_OTHERS = ("pip", "source", "cd", "playwright")  # programs that are not ours
OTHER_MODULES = ("venv", "pytest")


@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in SLOW])
def test_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_longer_python(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python(page)


@pytest.mark.parametrize("page", pages())
def test_commands(page):
    """Each is a program that is there, with options that it takes."""
    for words in commands(page):
        check(words)


def test_a_command_that_is_none_is_seen(capsys):
    for line, said in (
        ("robustpatch attack-vs-cert --atacks quick", "No such option"),
        ("python -m evaluate.attack_vs_cert --num-images many", "valid integer"),
        ("python -m evaluate.nothing", "no module"),
        ("robustpatch atack", "no command"),
        ("make everything", "no target"),
        ("rm -rf runs", "unknown program"),
    ):
        with pytest.raises((typer.Exit, AssertionError)) as error:
            check(line.split())
        assert said in str(error.value) + capsys.readouterr().err


def check(words: Sequence[str]) -> None:
    """Refuse a command line that would be refused."""
    words = list(words)
    if "&&" in words:
        for one in " ".join(words).split("&&"):
            check(one.split())
        return
    if re.match(r"[A-Z]+=", words[0]) or words[0] in OF_OTHERS:
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), f"no target {words[1]}"
    elif words[0] == "robustpatch":
        assert words[1] in COMMANDS, f"no command {words[1]}"
        parse(COMMANDS[words[1]], words[2:])
    elif words[0] in ("python", "torchrun"):
        if "-m" in words:
            module, *arguments = words[words.index("-m") + 1 :]
            called(module, arguments)
        else:
            assert (ROOT / words[1]).is_file(), f"no file {words[1]}"
    else:
        raise AssertionError(f"unknown program {words[0]}")


def called(module: str, arguments: Sequence[str]) -> None:
    mains = {name.removesuffix(".__main__"): name for name in COMMANDS.values()}
    if module in mains:
        parse(mains[module], arguments)
        return
    found = importlib.util.find_spec(module) if module.split(".")[0] in ("robustpatch", "evaluate", "tests") else None
    assert module in OTHER_MODULES or found is not None, f"no module {module}"


@lru_cache
def command(module: str) -> Any:
    return typer.main.get_command(import_module(module).app)


def parse(module: str, arguments: Sequence[str]) -> None:
    """Read the options; numbers have to be numbers, files need not be there."""
    command(module).make_context(module, list(arguments))


@pytest.mark.parametrize("page", [page for page in pages() if page.startswith("docs/theory/")])
def test_code_and_tests_that_the_theory_names_are_there(page):
    named = re.findall(r"`((?:robustpatch|tests)/[\w/.]+)(?:::(\w+))?`", (ROOT / page).read_text())
    for path, test in named:
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(), (path, test)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page):
    """MkDocs looks after those of the site."""
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert [line.split()[:2] for line in lines if line.startswith("make ")] == [["make", "demo"], ["make", "test"]]

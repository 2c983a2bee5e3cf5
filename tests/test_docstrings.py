"""Docstrings begin with a subject or a verb, never with a question word: a reader sees at once what a thing is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("robustpatch", "attacks", "evaluate", "benchmarks")
QUESTION = re.compile(r"(What|Whose|Whether|How|Why|Who|Where|When|If|That)\b")


def _docstrings(tree: ast.AST, public: bool = True) -> Iterator[tuple[str, str]]:
    """The name and the docstring of a module, and of all classes and functions in it; `public` ones, or all."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if public and node.name.startswith("_"):
                continue
            yield node.name, ast.get_docstring(node) or ""
        yield from _docstrings(node, public)


def questions(path: Path, public: bool = True, root: Path = ROOT) -> list[str]:
    """The lines "FILE: NAME: first line" of docstrings that begin with a question word."""
    tree, file = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(root).as_posix()
    found = [("module", ast.get_docstring(tree) or ""), *_docstrings(tree, public)]
    return [f"{file}: {name}: {text.splitlines()[0]}" for name, text in found if QUESTION.match(text)]


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_public_docstring_begins_with_a_question_word():
    found = {path.relative_to(ROOT).as_posix(): questions(path) for path in files(*PRODUCT)}
    assert not [line for lines in found.values() for line in lines]


def test_they_are_seen(tmp_path):
    path = tmp_path / "one.py"
    path.write_text('class A:\n    def b(self):\n        """Whether it is."""\n\n\ndef _c():\n    """How."""\n')
    assert questions(path, root=tmp_path) == ["one.py: b: Whether it is."]
    assert len(questions(path, False, tmp_path)) == 2

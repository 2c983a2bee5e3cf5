"""Docstrings begin with a subject or a verb, never with a question word: a reader sees at once what a thing is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("robustpatch", "attacks", "evaluate", "benchmarks")
QUESTION = re.compile(r"(What|Whose|Whether|How|Why|Who|Where|When|If|That)\b")
LEFT = {  # files that still have such docstrings: take out each that is mended, add none
    "attacks/art/models.py",
    "attacks/attack.py",
    "attacks/base.py",
    "attacks/border.py",
    "attacks/checks.py",
    "attacks/climb.py",
    "attacks/criterion.py",
    "attacks/ensemble.py",
    "attacks/furthest.py",
    "attacks/gradient.py",
    "attacks/oracle.py",
    "attacks/pasting.py",
    "attacks/placement.py",
    "attacks/search.py",
    "attacks/surfaces/__init__.py",
    "attacks/surfaces/base.py",
    "attacks/surfaces/patchcleanser.py",
    "attacks/surfaces/patchguard.py",
    "attacks/universal_patch.py",
    "evaluate/cli/command.py",
    "evaluate/cli/options.py",
    "evaluate/leaderboard/config.py",
    "evaluate/leaderboard/rows.py",
    "evaluate/learning.py",
    "evaluate/model/probe.py",
    "evaluate/report/data.py",
    "evaluate/report/note.py",
    "evaluate/report/page.py",
    "evaluate/results/metrics.py",
    "evaluate/results/table.py",
    "evaluate/results/vote_damage.py",
    "evaluate/runs/batch.py",
    "evaluate/runs/completed_run.py",
    "evaluate/runs/estimate.py",
    "evaluate/runs/gallery.py",
    "evaluate/runs/places.py",
    "evaluate/runs/records.py",
    "evaluate/runs/runner.py",
    "evaluate/runs/whole.py",
    "evaluate/runs/worker.py",
    "evaluate/sweep/metrics.py",
    "evaluate/sweep/records.py",
    "evaluate/sweep/runner.py",
    "robustpatch/checkpoints.py",
    "robustpatch/classifiers/as_classifier.py",
    "robustpatch/classifiers/base.py",
    "robustpatch/classifiers/calibration.py",
    "robustpatch/classifiers/checks.py",
    "robustpatch/classifiers/randomized.py",
    "robustpatch/classifiers/smoothed.py",
    "robustpatch/classifiers/witness.py",
    "robustpatch/cli/__init__.py",
    "robustpatch/cli/command_line.py",
    "robustpatch/cli/status.py",
    "robustpatch/cli/text.py",
    "robustpatch/data/folders.py",
    "robustpatch/data/pictures.py",
    "robustpatch/defenses/masked_network.py",
    "robustpatch/memory.py",
    "robustpatch/precision.py",
    "robustpatch/storage/holding.py",
    "robustpatch/storage/leftovers.py",
    "robustpatch/storage/sealing.py",
    "robustpatch/storage/store.py",
    "robustpatch/threats/__init__.py",
    "robustpatch/threats/base.py",
}


def _docstrings(tree: ast.AST, public: bool = True) -> Iterator[tuple[str, str]]:
    """The name and the docstring of a module, and of all classes and functions in it; `public` ones, or all."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if public and node.name.startswith("_"):
                continue
            yield node.name, ast.get_docstring(node) or ""
        yield from _docstrings(node, public)


def questions(path: Path, public: bool = True) -> list[str]:
    """The lines "FILE: NAME: first line" of docstrings that begin with a question word."""
    tree, file = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).as_posix()
    found = [("module", ast.get_docstring(tree) or ""), *_docstrings(tree, public)]
    return [f"{file}: {name}: {text.splitlines()[0]}" for name, text in found if QUESTION.match(text)]


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_public_docstring_begins_with_a_question_word():
    found = {path.relative_to(ROOT).as_posix(): questions(path) for path in files(*PRODUCT)}
    assert not [line for file, lines in found.items() if file not in LEFT for line in lines]


def test_they_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_docstrings.ROOT", tmp_path)
    path = tmp_path / "one.py"
    path.write_text('class A:\n    def b(self):\n        """Whether it is."""\n\n\ndef _c():\n    """How."""\n')
    assert questions(path) == ["one.py: b: Whether it is."]
    assert len(questions(path, public=False)) == 2

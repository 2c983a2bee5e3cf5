"""After the border nobody asks what type a classifier is or which attributes it has, but for the exceptions below."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONCRETE = {
    "SmoothedClassifier": "robustpatch/classifiers/smoothed.py",
    "RandomizedClassifier": "robustpatch/classifiers/randomized.py",
    "Defended": "robustpatch/defenses/base.py",
    "MaskedNetwork": "robustpatch/defenses/masked_network.py",
    "PatchCleanser": "robustpatch/defenses/patchcleanser.py",
    "MaskedClassifier": "robustpatch/defenses/patchguard.py",
    "BoundedClassifier": "robustpatch/defenses/ibp.py",
    "Filtered": "robustpatch/defenses/filtered.py",
    "ForeignModule": "robustpatch/classifiers/as_classifier.py",
}
INTERFACE = {
    "predict", "certify", "referee", "randomized", "evaluations", "predict_counted", "cost", "num_classes", "guard",
    "prediction_error", "judge_error", "defense", "outputs",
}  # fmt: skip
BORDER = "robustpatch/classifiers/as_classifier.py"
EXCEPTIONS = {
    # file: why it asks all the same
    "evaluate/audit/loading.py": "the audit's command: what the named object is, before it is a target",
    "evaluate/audit/run.py": "the audit's border: how many classes a target of any kind says there are",
    "evaluate/model/own.py": "the border of FILE.py:NAME: whether the named object is a classifier or makes one",
    "evaluate/model/identity.py": "the hash of a model that old run folders hold is made of what it was made of",
}


def _probes(path: Path, root: Path = ROOT) -> list[str]:
    """`isinstance(_, Concrete)`, `hasattr(_, "name")` and `getattr(_, "name", default)` of the interface's names."""
    found = []
    name = path.relative_to(root).as_posix()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or len(node.args) < 2:
            continue
        second = node.args[1]
        if node.func.id == "isinstance":
            kinds = {one.id for one in ast.walk(second) if isinstance(one, ast.Name)}
            kinds |= {one.attr for one in ast.walk(second) if isinstance(one, ast.Attribute)}
            found += [f"{name}: isinstance {kind}" for kind in kinds if CONCRETE.get(kind, name) != name]
        if node.func.id in ("hasattr", "getattr") and isinstance(second, ast.Constant) and second.value in INTERFACE:
            found.append(f"{name}: {node.func.id} {second.value}")
    return found


def _all_probes() -> dict[str, list[str]]:
    folders = [ROOT / name for name in ("robustpatch", "attacks", "evaluate")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): _probes(path) for path in paths}
    return {name: probes for name, probes in found.items() if probes and name != BORDER}


def test_nobody_probes_a_classifier_but_the_written_exceptions():
    found = _all_probes()
    assert not {name: probes for name, probes in found.items() if name not in EXCEPTIONS}
    assert len(EXCEPTIONS) <= 10
    assert set(EXCEPTIONS) == set(found), "an exception that is needed no more"


def test_probes_are_seen(tmp_path):
    path = tmp_path / "one.py"
    path.write_text('isinstance(x, int | smoothed.SmoothedClassifier)\nhasattr(x, "certify")\ngetattr(x, "color", 0)\n')
    assert sorted(_probes(path, tmp_path)) == ["one.py: hasattr certify", "one.py: isinstance SmoothedClassifier"]

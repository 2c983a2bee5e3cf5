"""The wheel takes one name, beside which others' `evaluate` and `attacks` work; a clone knows both names."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from setuptools import Distribution

import attacks
import robustpatch
from robustpatch import InvalidInput
from robustpatch.cli.import_by_name import named_object

ROOT = Path(__file__).parents[1]
PARTS = ("robustpatch", "attacks", "evaluate")


@pytest.fixture(scope="module")
def setup():
    """The module setup.py, which runs nothing when it is imported."""
    spec = spec_from_file_location("robustpatch_setup", ROOT / "setup.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(
    *arguments: object, cwd: Path, program: object = sys.executable, path: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        encoding="utf-8",
        env={"PATH": str(Path(sys.executable).parent), "PYTHONUTF8": "1", "PYTHONPATH": path},
    )


def of_clone(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Code in a folder that is not the clone, which comes after it on the path."""
    return python("-c", f"import sys; {code}", cwd=cwd, path=str(ROOT))


def test_a_wheel_has_all_files_of_the_clone_under_one_name(setup, monkeypatch):
    """Moved; and nothing but them."""
    monkeypatch.chdir(ROOT)
    built = setup.BuildPy(Distribution({**setup.layout(editable=False), "script_name": "setup.py"}))
    built.build_lib = "wheel"
    built.finalize_options()
    found = {Path(path).relative_to("wheel").as_posix() for path in built.get_outputs(include_bytecode=False)}
    kept = {path.relative_to(ROOT) for name in PARTS for path in (ROOT / name).rglob("*") if path.is_file()}
    kept = {path.as_posix() for path in kept if "__pycache__" not in path.parts}
    assert found == {path if path.startswith("robustpatch/") else f"robustpatch/{path}" for path in kept}
    assert len(setup.layout(editable=True)["package_dir"]) == 1  # of a folder, so that all of it is on the path


def test_a_package_index_shows_no_link_that_leads_nowhere(setup):
    """Nor a picture: without a repository they are left out, and what they were called stays."""
    readme = (ROOT / "README.md").read_text()
    shown = setup.on_an_index(readme, None)
    assert re.search(r"\]\((?!https://)", readme)
    assert not re.search(r"\]\((?!https://)", shown)
    assert "![" not in shown
    assert "All boards" in shown
    assert "](https://pytorch.org" in shown
    shown = setup.on_an_index(readme, "https://example.org/robustpatch")
    assert "](https://example.org/robustpatch/raw/main/docs/report.png)" in shown
    assert "[All boards](https://example.org/robustpatch/blob/main/docs/boards.md)" in shown


def test_imports_are_moved_and_nothing_else(setup):
    source = (
        "from attacks.base import judge, Θ\nif True:\n    from evaluate import (\n        a, b)\n"
        "from robustpatch.attacks import c\nfrom attacksmith import d\n# from attacks import e\n"
        "x = 'from evaluate import f'"
    )
    moved = source.replace("from attacks.base", "from robustpatch.attacks.base")
    assert setup.with_moved_imports(source) == moved.replace("    from evaluate", "    from robustpatch.evaluate")
    with pytest.raises(ValueError, match="line 2 binds a name"):
        setup.with_moved_imports("import os\nimport attacks.base")


def test_no_text_names_a_module_that_the_wheel_has_not():
    """Neither an import that would not be moved, nor a name that is looked up, nor a command that somebody is told."""
    name = r"(?<![\w.])(?:evaluate|attacks)\.[a-z_]\w+"
    for path in (path for name in PARTS for path in (ROOT / name).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*import (evaluate|attacks)\b", text, flags=re.M), path
        if not re.search(f"(?<!from ){name}", text):
            continue
        nodes = list(ast.walk(ast.parse(text)))
        about = [node.body[0] for node in nodes if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
        docstrings = {id(first.value) for first in about if isinstance(first, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                assert not re.search(name, node.value), (path, node.value)


def test_a_module_has_two_names_in_a_clone():
    """And is one module, whichever was asked for first."""
    for own, name in (("attacks", "base"), ("evaluate", "results.metrics")):
        one, two = import_module(f"robustpatch.{own}.{name}"), import_module(f"{own}.{name}")
        assert one is two
        assert one.__spec__.name == one.__name__ == f"{own}.{name}"
        assert import_module(f"robustpatch.{own}") is import_module(own) is getattr(robustpatch, own)
    assert robustpatch.attacks.judge is attacks.judge
    assert find_spec("robustpatch.attacks.nothing") is find_spec("robustpatch.tests") is None


@pytest.mark.parametrize(
    "code",
    [
        "from robustpatch import attacks, evaluate; print(attacks.__name__, 'torch' in sys.modules)",
        "import evaluate, attacks, robustpatch.attacks; print(robustpatch.attacks.__name__, 'torch' in sys.modules)",
        "from robustpatch.attacks import __name__; print(__name__, 'torch' in sys.modules)",
    ],
)
def test_the_names_are_at_hand_from_another_folder(code, tmp_path):
    """Without torch, for it is a command's name or a completion that somebody waits for. Above the clone, its folder is
    on the path, but hides nothing: a folder without __init__.py comes after a package wherever it lies.
    """
    (tmp_path / "robustpatch").mkdir()
    done = of_clone(code, tmp_path)
    assert (done.stdout, done.stderr) == ("attacks False\n", "")


def test_commands_are_modules_by_either_name(tmp_path):
    """`python -m` runs the file once more, as a main program."""
    for name in ("robustpatch.evaluate.cli.program", "robustpatch"):
        code = f"import runpy; sys.argv[1:] = ['--version']; runpy.run_module({name!r}, run_name='__main__')"
        assert of_clone(code, tmp_path).stdout.startswith("robustpatch "), name


def test_a_name_that_somebody_else_took_is_told_in_one_line(tmp_path):
    """And one that nobody imported yet means the clone's, though a file beside the script has it."""
    (tmp_path / "attacks.py").write_text("mine = 1\n")
    done = of_clone("from robustpatch.attacks import __file__; print(__file__)", tmp_path)
    assert (done.stdout, done.stderr) == (f"{ROOT / 'attacks' / '__init__.py'}\n", "")
    done = of_clone("import attacks; from robustpatch.evaluate import evaluate", tmp_path)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"ImportError: attacks was imported from {tmp_path / 'attacks.py'}, but robustpatch runs")
    assert last.endswith(f"install it with pip install {ROOT}, without -e, which takes no other name")


def test_a_model_s_neighbour_that_a_clone_hides_is_named(tmp_path):
    """mine.py may be called attacks.py, but not import one."""
    (tmp_path / "attacks.py").write_text("net = 1\n")
    assert named_object(f"{tmp_path / 'attacks.py'}:net", "model") == 1
    (tmp_path / "mine.py").write_text("from attacks import net\n")
    with pytest.raises(InvalidInput, match=r"attacks, which is a package of robustpatch's clone rather"):
        named_object(f"{tmp_path / 'mine.py'}:net", "model")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A Python that has the wheel, made of the sdist, and Hugging Face's `evaluate`; all else from this one's."""
    place = tmp_path_factory.mktemp("wheel")
    copied = place / "clone"
    for name in PARTS:
        shutil.copytree(ROOT / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    build = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    assert python("-c", build, "build_sdist", place, cwd=copied).returncode == 0
    (archive,) = place.glob("*.tar.gz")
    shutil.unpack_archive(archive, place / "unpacked")
    (unpacked,) = (place / "unpacked").iterdir()
    done = python("-c", build, "build_wheel", place, cwd=unpacked)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    venv.create(place / "venv", with_pip=True)
    program = place / "venv" / "bin" / "python"
    pip = [program, "-m", "pip", "--disable-pip-version-check", "-q"]
    own = sysconfig.get_path("purelib", vars={"base": str(place / "venv")})
    Path(own, "all-else.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    others = ("evaluate", "datasets", "dill", "xxhash", "multiprocess", "pandas")
    if subprocess.run([*pip, "install", "--no-deps", *others]).returncode:
        pytest.skip("no package index is at hand for Hugging Face's evaluate")
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
    (place / "empty").mkdir()
    (place / "empty" / "attacks.py").write_text("mine = 1\n")
    (place / "empty" / "robustpatch").mkdir()  # as above a clone
    return program, place / "empty"


THEIRS = "import evaluate; assert evaluate.EvaluationModule; import attacks; assert attacks.mine == 1\n"
OURS = (
    "import robustpatch.attacks, robustpatch.evaluate\n"
    "assert robustpatch.evaluate.evaluate.__module__ == 'robustpatch.evaluate.runs.runner'\n"
    "assert robustpatch.attacks.judge.__module__ == 'robustpatch.attacks.base'\n"
)
MINE = """
import evaluate, torch, attacks  # theirs, and the file beside this one
from robustpatch.attacks import PatchPGD
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
assert attacks.mine == 1 and evaluate.EvaluationModule and PatchPGD
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_wheel_beside_hugging_face_s_evaluate(installed, tmp_path):
    """Both are imported in one process, commands run from another folder, a worker's process finds the classes, and
    either can be uninstalled without the other.
    """
    program, folder = installed
    done = python("-c", THEIRS + OURS, cwd=folder, program=program)
    assert done.returncode == 0, done.stderr
    run = ["--attacks", "pgd:1", "--steps", 2, "--num-images", 4, "--output", tmp_path / "out"]
    (folder / "mine.py").write_text(MINE)
    out = tmp_path / "out"
    calls = (
        ("attack-vs-cert", *run),
        ("attack-vs-cert", "--model", "mine.py:net", *run[:-1], tmp_path / "mine"),
        ("report", out, "--output", tmp_path / "report"),
        ("bundle", out, "--output", tmp_path / "case.zip"),
        ("verify", tmp_path / "case.zip"),
        ("sweep", "mnist-columns2", "--num-images", 4, "--patch", "5x5", "--output", tmp_path / "sweep"),
    )
    for call in calls:
        done = python("-m", "robustpatch", *call, cwd=folder, program=program)
        assert done.returncode == 0, (call, done.stdout, done.stderr)
    done = python(program.parent / "robustpatch", "attack-vs-cert", *run, cwd=folder, program=program)  # said once more
    assert done.returncode == 0, done.stderr
    code = (
        "import multiprocessing, pickle\nfrom robustpatch.attacks import quick\n"
        "if __name__ == '__main__':\n    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        assert pool.map(repr, [quick()]) == [repr(quick())]\n"
    )
    (folder / "spawned.py").write_text(code)
    done = python("spawned.py", cwd=folder, program=program)
    assert done.returncode == 0, done.stderr
    pip = [program, "-m", "pip", "-q", "uninstall", "-y"]
    subprocess.run([*pip, "evaluate"], check=True)
    assert python("-c", OURS, cwd=folder, program=program).returncode == 0
    subprocess.run([*pip, "robustpatch"], check=True)
    assert python("-c", "import robustpatch.attacks", cwd=folder, program=program).returncode == 1

"""The shipped workflow and Dockerfile without GitHub and Docker: every step asks for what is there."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from evaluate.cli.program import app
from tests.docs.blocks import ROOT
from tests.docs.test_pages import check

EXAMPLES = ROOT / "examples"


def steps() -> tuple[list[list[str]], list[str]]:
    """The command lines of the workflow, and the paths that it uploads."""
    (job,) = yaml.safe_load((EXAMPLES / "robustness.yml").read_text())["jobs"].values()
    given = [step["with"] for step in job["steps"] if "upload" in step.get("uses", "")]
    lines = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    return lines, [some.get("path") or some["sarif_file"] for some in given]


def test_the_commands_of_the_workflow():
    """They are ones that the programs take, and the safety case is of the run that the rules name."""
    (install, gate, bundle, show), uploaded = steps()
    assert install[:4] == ["python", "-m", "pip", "install"]
    check(gate)
    check(bundle)
    assert bundle[2] == tomllib.loads((EXAMPLES / "gate.toml").read_text())["run"]["output"]
    assert show[0] == "cat"
    assert uploaded == ["gate", "gate/gate.sarif"]


@pytest.mark.slow
def test_the_steps_of_the_workflow(tmp_path, monkeypatch):
    """Each reads what one before it has written."""
    (_, gate, bundle, show), uploaded = steps()
    monkeypatch.chdir(tmp_path)
    Path("gate.toml").write_text(
        f'[[floor]]\nleast = 25\n[run]\nnum_images = 2\nattacks = "none"\noutput = "{bundle[2]}"\n'
    )
    for line in (gate, bundle):
        done = CliRunner().invoke(app, line[1:])
        assert done.exit_code == 0, done.output
    for path in (show[1], bundle[4], *uploaded):
        assert Path(path).exists(), path


def test_the_image():
    """It copies what the package is built of, and starts the program."""
    steps = [line.split(maxsplit=1) for line in (EXAMPLES / "Dockerfile").read_text().splitlines() if line[:1] != "#"]
    copied = [word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]]
    assert all((ROOT / path).exists() for path in copied)
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {"robustpatch", "attacks", "evaluate"}
    project = about["project"]
    assert {"pyproject.toml", "setup.py", "README.md", *project["license-files"], *packages} <= set(copied)
    assert steps[-1] == ["ENTRYPOINT", '["robustpatch"]']
    assert "robustpatch" in project["scripts"]

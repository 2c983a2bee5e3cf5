"""The tutorials: each runs as the notebook that the site offers, and prints what it says that it prints."""

from __future__ import annotations

import os

import jupytext
import pytest
from nbclient import NotebookClient

from tests.docs.blocks import DOCS, blocks, run_python

TUTORIALS = sorted(path.stem for path in (DOCS / "tutorials").glob("*.md") if path.stem != "index")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_notebook(name, tmp_path, monkeypatch):
    """Its cells run in Jupyter, in a folder of their own; what they print is what the page shows."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(DOCS.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = jupytext.read(DOCS / "tutorials" / f"{name}.md")
    client = NotebookClient(notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = [block.printed for block in blocks(f"docs/tutorials/{name}.md") if block.language == "python"]
    assert len(cells) == len(said)
    for cell, printed in zip(cells, said, strict=True):
        found = "".join(out.text for out in cell.outputs if out.output_type == "stream" and out.name == "stdout")
        assert printed is None or found.strip() == printed.strip(), cell.source


def test_the_quickest_one(tmp_path, monkeypatch):
    """Without Jupyter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    run_python("docs/tutorials/own-model.md")

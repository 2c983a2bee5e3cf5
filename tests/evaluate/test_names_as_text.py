"""Names of files, models, attacks and classes are text: on the console, in Markdown and in pictures."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.progress import Progress
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

import evaluate
import robustpatch
from evaluate.audit.finding import Audit, Finding
from evaluate.audit.report import markdown as audit_markdown
from evaluate.cli.command import progress_bar
from evaluate.compare import Comparison, Paired
from evaluate.compare import markdown as compare_markdown
from evaluate.learning import Learning, draw
from evaluate.results.metrics import Share
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.text import one_line
from tests.evaluate.calls import call

NAME = "[red]x[/red] :x: \x1b[31m $\\frac$ <b>"
SHOWN = "[red]x[/red] :x: \\x1b[31m $\\frac$ <b>"


@pytest.fixture
def console():
    return TextConsole(file=io.StringIO(), width=200, force_terminal=True, color_system=None, legacy_windows=False)


def _printed(console) -> str:
    return console.file.getvalue()


def test_a_console_shows_text(console):
    """In whatever it is put."""
    table = Table(title=NAME)
    table.add_column(NAME)
    table.add_row(NAME)
    console.print(table)
    assert _printed(console).count(SHOWN) == 3
    console.print(NAME)
    console.print(Text(NAME, style="red"))
    console.print(Rule(NAME))
    console.rule(NAME)
    assert _printed(console).count(SHOWN) == 7
    assert "\x1b[31m" not in _printed(console)


def test_progress_shows_text(console):
    bar: Progress = progress_bar(console)
    with bar:
        bar.update(bar.add_task("", total=2), completed=1, description=one_line(NAME))
        bar.refresh()
    assert SHOWN in _printed(console)
    assert "\x1b[31m" not in _printed(console)


def test_every_command_prints_to_such_a_console():
    """rich's own obeys what it prints."""
    for package in (robustpatch, evaluate):
        (root,) = package.__path__
        for path in Path(root).rglob("*.py"):
            assert not re.search(
                r"(?<!\w)Console\(", path.read_text("utf-8").replace("class TextConsole(Console)", "")
            ), path


def test_markdown_shows_text():
    """No HTML, no mark-up, no formula."""
    share = Share(1, 2)
    pair = Paired("clean", NAME, NAME, 1, 1, 1.0, 1.0)
    text = compare_markdown(Comparison(NAME, [NAME, NAME], {"clean": [share, share]}, [pair], []))
    finding = Finding("agreement", "inconsistent", NAME, {}, {})
    text += audit_markdown(
        Audit(
            name=NAME,
            threat="1x1",
            findings=(finding,),
            untested=((NAME, NAME),),
            views=(NAME,),
            images=1,
            certified=1,
            attacked=1,
            ballots=0,
            evaluations=0,
            seconds=0.0,
            shape="1x1x1",
            named=False,
            stopped=NAME,
        ),
        ["a```\x1b[31m"],
    )
    assert not re.findall(r"(?<!\\)(<b|\$|\[red)|\x1b", text), text
    assert text.count("\\<b\\>") >= 10


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_show_text(ending, tmp_path):
    """A name is no formula, which this one would be refused as; one that begins with "_" is in the legend."""
    rows = [
        {"epoch": k, "clean": 0.5, "certified_margin": None, "certified_exact": 0.2, "seconds": 1.0} for k in (1, 2)
    ]
    path = tmp_path / f"learning.{ending}"
    draw([Learning("$\\frac$ \x07", rows), Learning("_b", rows)], path)
    assert path.stat().st_size > 1_000
    assert b"\x07" not in path.read_bytes() or ending == "png"


def test_a_run_of_a_model_with_such_a_name(tmp_path, monkeypatch):
    """From the command to its table."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[red]:x:[.py").write_text(
        "import torch\nmake = lambda: torch.nn.Sequential(torch.nn.Flatten(), L())\n"
        "class L(torch.nn.Linear):\n    def __init__(self): super().__init__(192, 2)\n"
    )
    for name in ("[red]:x:", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "photos" / name / "0.png")
    given = ("--model", "[red]:x:[.py:make", "--dataset", "folder", "--data-root", "photos", "--patch", "1x1")
    done = call(*given, "--attacks", "none", "--output", "[bold]:x:")
    assert done.exit_code == 0, done.output
    assert "[red]:x:[.py:make" in done.stdout
    assert "[bold]:x:/report.html" in done.stdout

"""Calls that nobody would write by hand, from the options' own types: each ends well, or with status 2 and one line."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from evaluate.cli.program import COMMANDS, app
from robustpatch.checkpoints import model_from, save_checkpoint
from robustpatch.errors import InvalidInput
from robustpatch.proof.verifier import main
from tests import toys

CONFIG: dict[str, Any] = {
    "network": {"name": "strip", "widths": [4], "hidden": 0},
    "ablation": "columns:2",
    "voting": "threshold:0.3",
    "guard": None,
    "encoding": "complement",
    "image_shape": [3, 8, 8],
    "class_names": ["cat", "dog"],
    "history": [{"epoch": 1, "clean": 0.5, "certified_margin": 0.1, "certified_exact": 0.2, "seconds": 1.0}],
}
RECIPE = """[[run]]
name = "small"
ablation = "none"
network = {name = "small-cnn", widths = [2], hidden = 2}
epochs = 1
batch_size = 2
bfloat16 = false
"""
BOARD = """title = "toys"
dataset = "folder"
data_root = "photos"
patch = "1x1"
num_images = 1
attacked_images = 0
timed_images = 1
attacks = "none"
[[defense]]
name = "one"
checkpoint = "toy.safetensors"
"""
FOLDER = ("--dataset", "folder", "--data-root", "photos")
ASKED: dict[str, tuple[str, ...]] = {
    "attack-vs-cert": (
        "--checkpoint",
        "toy.safetensors",
        *FOLDER,
        "--patch",
        "1x1",
        "--num-images",
        "1",
        "--attacks",
        "none",
    ),
    "report": ("run",),
    "audit": (
        "mine.py:toy",
        "--shape",
        "3x8x8",
        "--patch",
        "1x1",
        "--images",
        "1",
        "--budget",
        "2",
        "--time-limit",
        "0.05",
    ),
    "sweep": ("toy.safetensors", *FOLDER, "--patch", "1x1", "--theta", "0.3", "--num-images", "1"),
    "compare": ("run", "run"),
    "gate": ("gate.toml", "run"),
    "bundle": ("run",),
    "verify": ("case.zip",),
    "selftest": (),
    "leaderboard": ("board.toml",),
    "boards": ("board",),
    "learning": ("toy.safetensors",),
    "curve": ("run",),
    "train": (*FOLDER, "--ablation", "none", "--epochs", "1", "--batch-size", "2", "--no-bfloat16"),
    "recipe": ("recipe.toml", *FOLDER),
}
MINE = """from robustpatch.checkpoints import load_checkpoint


def toy():
    return load_checkpoint("toy.safetensors").smoothed
"""
# What may take hours or another machine, where it is right.
LEFT_OUT = {"help", "ray", "num_workers", "install_completion", "show_completion", "output"}
NUMBERS = [
    "-1",
    "0",
    "1",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    str(2**31),
    str(2**63),
    "9" * 400,
    "",
    "x",
    "\0",
    "٣",
    "1e-320",
]
TEXTS = [
    *("", " ", "\0", "x" * 5_000, "nowhere", "..", "/", "photos", "toy.safetensors", "text.txt", "empty.txt", "loop"),
    *("-1", "0", "none", "nan", "9" * 5_000, "9x9", "0x0", "100%", "1e9%", "1*1x1", f"{10**30}*1x1", "5x5x5", "²"),
    *(
        ",",
        ",,",
        "a,b",
        "a:b",
        ":",
        "a=b",
        "%",
        "*",
        "[",
        "[/red]",
        "\x1b[31m",
        "a\nb",
        "\ud800",
        "\udcfc",
        "nothing.py:x",
        "mine.py:nothing",
    ),
    *(
        "columns:2",
        f"columns:{10**30}",
        "columns:2/0",
        "columns:1e400",
        "sparse:5",
        "sparse:-1",
        "threshold:nan",
        "tanh:inf:1",
    ),
    *(
        "relu:1e400",
        "sigmoid:",
        "top1",
        "ibp:x=1",
        "patchcleanser:masks=-1",
        f"pgd:{10**30}",
        "pgd:x",
        "quick",
        "cuda",
        "cuda:99",
    ),
    *("s3://", "memory://x", "http://", "bad.toml", "types.toml", "deep.toml"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that a call of each command needs, and files of other kinds."""
    folder = tmp_path_factory.mktemp("calls")
    for split in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (folder / "photos" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (40 * i, 100 * number, 9)).save(folder / "photos" / split / name / f"{i}.png")
    model = toys.seeded(lambda: model_from(CONFIG))
    save_checkpoint(folder / "toy.safetensors", model, CONFIG)
    for name, text in (
        ("recipe", RECIPE),
        ("board", BOARD),
        ("gate", "[[floor]]\nleast = 0\n"),
        ("bad", "a = "),
        ("types", "run = 3\n[defaults]\nlr = 'x'\n"),
    ):
        (folder / f"{name}.toml").write_text(text)
    (folder / "deep.toml").write_text("a = " + "[" * 5_000)
    (folder / "mine.py").write_text(MINE)
    (folder / "text.txt").write_text("cat\ndog\n")
    (folder / "empty.txt").write_text("")
    (folder / "loop").symlink_to("loop")
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = call("attack-vs-cert", [*ASKED["attack-vs-cert"], "--output", "run"])
        assert done.exit_code == 0, done.output
        done = call("bundle", [*ASKED["bundle"], "--output", "case.zip"])
        assert done.exit_code == 0, done.output
        done = call("leaderboard", [*ASKED["leaderboard"], "--output", "board"])
        assert done.exit_code == 0, done.output
        yield folder
    finally:
        os.chdir(before)


REACHED = "the call is taken: its work would begin"


def call(command: str, arguments: list[str]) -> Any:
    return CliRunner().invoke(app, [command, *arguments])


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def _options(command: str, *also: str) -> list[Any]:
    params = get_command(import_module(COMMANDS[command]).app).params
    return [one for one in params if one.name not in LEFT_OUT - {*also}]


def _is_number(option: Any) -> bool:
    told = getattr(option, "type_descriptor", None)  # typer's; click's own options have a type
    return told.annotation in (int, float) if told is not None else option.type.name in ("integer", "float")


def _value(option: Any) -> st.SearchStrategy[list[str]]:
    """A wrong or odd value of one option: as words of the command line."""
    if option.param_type_name == "argument":
        return st.sampled_from(TEXTS).map(lambda text: [text])
    name = max([*option.opts, *option.secondary_opts], key=len)
    if option.is_flag:
        return st.just([name])
    numeric = _is_number(option)
    if option.name == "time_limit":  # a long one is right, and the call goes on as long as it says
        return st.sampled_from([text for text in NUMBERS if not text.isdigit()]).map(lambda value: [name, value])
    return st.sampled_from([*NUMBERS, *TEXTS] if numeric else [*TEXTS, *NUMBERS]).map(lambda value: [name, value])


def _output(command: str) -> list[str]:
    name = {"learning": "out.png", "curve": "out.png", "bundle": "out.zip"}.get(command, "out")
    return [] if command in ("report", "verify", "selftest") else ["--output", name]


@st.composite
def calls(draw: Any) -> tuple[str, list[str]]:
    """A command, and one to three of its options with odd values beside what it needs."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    chosen = draw(st.lists(st.sampled_from(_options(command)), min_size=1, max_size=3, unique_by=lambda one: one.name))
    words = [word for option in chosen for word in draw(_value(option))]
    return command, [*ASKED[command], *_output(command), *words]


def ends_well(place: Path, command: str, words: list[str], monkeypatch: Any) -> None:
    """Status 0, or 2 with one line on stderr, no traceback and nothing written."""
    before = tree(place)
    done = call(command, words)
    after = tree(place)
    said = f"{command} {words!r:.600}: {done.exit_code} {done.exception!r:.300}\n{done.output[-1500:]}"
    if REACHED in done.stderr or done.exit_code == 0:
        for new in sorted(set(after) - set(before), reverse=True):
            Path(new).rmdir() if Path(new).is_dir() else Path(new).unlink()
        return
    assert done.exit_code == 2, said
    lines = done.stderr.splitlines()
    if lines and lines[-1].startswith("error: scores differ by"):  # measured, when the work had begun
        lines = lines[-1:]
    assert len(lines) == 1, said
    assert not done.stdout, said
    assert lines[0].startswith("error: "), said
    assert lines[0].isprintable(), said
    assert len(lines[0]) > 20, said
    assert after == before, said


@pytest.fixture
def no_training(monkeypatch):
    """A training stops where it would take its first batch."""

    def read_ahead(*_: Any) -> Any:
        raise InvalidInput(REACHED)

    monkeypatch.setattr("robustpatch.training.loop.read_ahead", read_ahead)


def _search(place: Path, monkeypatch: Any, number: int) -> None:
    @settings(max_examples=number, deadline=None, suppress_health_check=list(HealthCheck))
    @given(calls())
    def run(asked: tuple[str, list[str]]) -> None:
        ends_well(place, *asked, monkeypatch)

    run()


@pytest.mark.usefixtures("no_training")
def test_some_generated_calls(place, monkeypatch):
    """A few, in seconds."""
    _search(place, monkeypatch, 25)


KINDS = (
    "-1",
    "0",
    str(2**63),
    "9" * 400,
    "nan",
    "inf",
    "",
    "x",
    "1.5",
    "\0",
    "nowhere/x",
    "text.txt",
    "photos",
    "1,1,-1",
)


def _each(command: str, kinds: tuple[str, ...]) -> list[list[str]]:
    """The words that the command needs, with each of its options once as each kind, beside what says otherwise."""
    return [
        [*ASKED[command], *_output(command), *(words if option.is_flag else [*words, kind])]
        for option in _options(command, "output")
        if option.param_type_name != "argument"
        for words in [[max([*option.opts, *option.secondary_opts], key=len)]]
        for kind in (kinds[:1] if option.is_flag else kinds)
        if not (option.name == "time_limit" and kind.isdigit())  # is right, and never ends
    ]


@pytest.mark.parametrize("command", ["compare", "learning"])
def test_each_option_as_each_kind_of_quick_commands(place, command, monkeypatch):
    for words in _each(command, KINDS):
        ends_well(place, command, words, monkeypatch)


@pytest.mark.usefixtures("place")
def test_a_sample_where_there_is_no_evidence_is_refused_before_a_word():
    done = call("verify", ["case.zip", "--sample", "1"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no certificate has evidence" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_option_as_each_kind(place, command, monkeypatch):
    """Negative, zero, huge, no number, infinite, empty, of another type, unknown, NUL, a file, a folder."""
    for words in _each(command, KINDS):
        ends_well(place, command, words, monkeypatch)


@pytest.mark.parametrize("arguments", [[], ["verify"], ["prove", "x"], *(["verify", text] for text in TEXTS)])
@pytest.mark.usefixtures("place")
def test_calls_of_the_verifier(arguments, capsys):
    """The verifier needs no more than numpy, and has no options."""
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.rstrip("\n").isprintable()


@pytest.mark.slow
@pytest.mark.usefixtures("no_training")
@pytest.mark.timeout(3_600)
def test_a_thousand_generated_calls(place, monkeypatch):
    """Of every command, with up to three odd values."""
    _search(place, monkeypatch, 1_200)
    assert torch.get_num_threads() >= 1

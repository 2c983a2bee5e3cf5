"""A leaderboard: its file is read or refused, its numbers are those of the runs, and it is resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from evaluate.boards import app as boards
from evaluate.bundle.__main__ import app as bundle
from evaluate.leaderboard import plan, read_board
from evaluate.leaderboard.__main__ import app
from evaluate.results.metrics import summarise
from evaluate.runs.completed_run import read_run
from robustpatch.errors import InvalidInput


def written(checkpoint, undefended, path):
    """Two rows: one that certifies, one that does not."""
    path.write_text(f"""
title = "Two of them"
dataset = "mnist-sample"
num_images = 12
attacked_images = 8
timed_images = 4
attacks = "pgd:1"
steps = 2
certified_budget = 200
batch_size = 6

[[defense]]
name = "columns of width 2"
checkpoint = "{checkpoint}"
recipe = "recipes/columns2.toml"
run = "mnist-columns2"
published = {{ clean = 96.66, certified = 52.83 }}
source = "Levine & Feizi 2020"

[[defense]]
name = "nothing at all"
checkpoint = "{undefended}"
num_images = 8
""")
    return path


@pytest.fixture
def board(checkpoint, undefended, tmp_path):
    return written(checkpoint, undefended, tmp_path / "board.toml")


@pytest.fixture(scope="module")
def finished(checkpoint, undefended, tmp_path_factory):
    """The output of the board, done once."""
    place = tmp_path_factory.mktemp("board")
    result = run(written(checkpoint, undefended, place / "board.toml"), "--output", place / "out")
    assert result.exit_code == 0, result.output
    return place / "out"


@pytest.fixture
def output(finished, tmp_path):
    """A copy of it, to go on from."""
    return copytree(finished, tmp_path / "out")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_numbers_are_those_of_the_runs(finished):
    """Clean and certified of all images, what is left of the attacked ones, and where all of it is written."""
    output = finished
    columns, nothing = pq.read_table(output / "leaderboard.parquet").to_pylist()
    assert (columns["name"], nothing["name"]) == ("columns of width 2", "nothing at all")
    for row in (columns, nothing):
        folder = output / row["name"].replace(" ", "-")
        whole, attacked = (summarise(read_run(folder / name).records) for name in ("all", "attacked"))
        assert (row["images"], row["attacked_images"]) == (whole.images, 8)
        assert row["clean"] == whole.clean.value
        assert (row["clean_low"], row["clean_high"]) == whole.clean.interval
        assert row["empirical"] == attacked.under_all.value
        assert row["verdict"] == attacked.verdict
        assert row["speed_predict"] > 0
        assert row["certified"] == (None if whole.certified_exact is None else whole.certified_exact.value)
    assert columns["certified"] > 0
    assert (
        columns["certified"] == summarise(read_run(output / "columns-of-width-2" / "all").records).certified_exact.value
    )
    assert columns["images"] == 12
    assert nothing["images"] == 8
    assert columns["published_certified"] == 52.83
    assert nothing["speed_certify"] is None
    text = (output / "leaderboard.md").read_text()
    assert "robustpatch recipe recipes/columns2.toml --only mnist-columns2" in text
    assert "(8)" in text, "fewer images than elsewhere are said so"
    assert (output / "leaderboard.png").stat().st_size > 10_000
    assert json.loads((output / "leaderboard.json").read_text())["rows"] == [columns, nothing]


def test_a_row_for_each_patch(undefended, tmp_path):
    """A list of patches makes a row of each, patch by patch: numbers of a run against that patch, and a verdict."""
    board = written("mnist-columns2", undefended, tmp_path / "board.toml")
    text = board.read_text().replace('attacks = "pgd:1"', 'attacks = "pgd:1"\npatch = ["5x5", "disc:2", "2*2x2"]')
    board.write_text(text.replace("num_images = 8\n", 'num_images = 8\npatch = "disc:2"\n'))
    result = run(board, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "out" / "leaderboard.parquet").to_pylist()
    assert [(row["patch"], row["name"]) for row in rows] == [
        ("5x5", "columns of width 2"),
        ("disc:2", "columns of width 2"),
        ("disc:2", "nothing at all"),
        ("2*2x2", "columns of width 2"),
    ]
    for row, folder in ((rows[0], "columns-of-width-2-5x5"), (rows[1], "columns-of-width-2-disc-2")):
        whole = summarise(read_run(tmp_path / "out" / folder / "all").records)
        assert whole.certified_exact is not None
        assert row["certified"] == whole.certified_exact.value
        assert row["verdict"] == "held"
    assert rows[0]["certified"] < rows[1]["certified"]
    lines = (tmp_path / "out" / "leaderboard.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("| disc:2 | columns of width 2 |") and "HELD" in line]
    assert "each patch wherever it may lie" in "".join(lines)


def test_what_is_there_is_not_done_again(board, output, monkeypatch):
    """A second call scores nothing, of some of the rows, too, and other images are another run."""
    before = (output / "leaderboard.md").read_text()

    def never(*_args, **_options):
        raise AssertionError("done again")

    monkeypatch.setattr("evaluate.runs.runner.evaluate_batch", never)
    monkeypatch.setattr("evaluate.leaderboard.rows._rate", never)
    assert run(board, "--output", output).exit_code == 0
    assert (output / "leaderboard.md").read_text() == before
    assert run(board, "--output", output, "--only", "nothing at all").exit_code == 0
    assert [row["name"] for row in pq.read_table(output / "leaderboard.parquet").to_pylist()] == ["nothing at all"]
    board.write_text(board.read_text().replace("steps = 2", "steps = 3"))
    other = run(board, "--output", output)
    assert other.exit_code == 2
    assert "holds another run" in " ".join(other.output.split())


def test_a_certificate_broken_beyond_the_attacked_images_breaks_the_row(board, output, monkeypatch):
    """As where `predict` contradicts one: the verdict on those under attack does not hide it."""

    def spoiled(records):
        summary = summarise(records)
        return replace(summary, verdict="broken") if len(records) == 12 else summary

    monkeypatch.setattr("evaluate.leaderboard.rows.summarise", spoiled)
    result = run(board, "--output", output)
    assert result.exit_code == 1, result.output
    assert [row["verdict"] for row in pq.read_table(output / "leaderboard.parquet").to_pylist()] == [
        "broken",
        "no certificate",
    ]
    text = (output / "leaderboard.md").read_text()
    assert "BROKEN, a certified prediction was changed: columns of width 2" in text
    assert "HELD" not in text


def test_rows_under_other_attacks_are_said_so(board, tmp_path):
    board.write_text(board.read_text() + 'attacks = "pgd:2"\nbudget = 1000\n')
    output = tmp_path / "out"
    assert run(board, "--output", output).exit_code == 0
    said = "right after pgd:1 (2 steps) for columns of width 2; pgd:2 (2 steps, 1,000 evaluations an image) for nothing"
    assert said in (output / "leaderboard.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("[[defense]]", "[[offense]]"), "offense"),
        (('name = "nothing at all"', 'name = "columns of width-2"'), "two rows called"),
        (('name = "nothing at all"', ""), "name is missing"),
        (('name = "nothing at all"', 'name = "nothing, at all"'), "without commas"),
        (("attacked_images = 8", "attacked_images = -1"), "attacked_images is -1"),
        (("attacked_images = 8", 'attacked_images = "8"'), "attacked_images is '8'; give a whole number"),
        (("steps = 2", "stepz = 2"), "stepz"),
        (("steps = 2", 'steps = "two"'), "steps is 'two'; give a whole number"),
        (("num_images = 8", "voting = 0.3"), "voting is 0.3; give a text"),
        (("published = { clean = 96.66,", "published = { clear = 96.66,"), r"published\.clear is no option"),
        (("certified = 52.83", "certified = 152.83"), r"published\.certified is 152\.83; it must be at most 100"),
        (("num_images = 8", 'num_images = 8\nmodel = "a.py:b"'), "name a checkpoint, or a model"),
        (('title = "Two of them"', "title = "), "cannot be read as TOML"),
    ],
)
def test_a_wrong_board_is_refused(board, change, said):
    board.write_text(board.read_text().replace(*change))
    with pytest.raises(InvalidInput, match=said):
        read_board(board)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('attacks = "pgd:1"', 'attacks = "magic"'), "row columns of width 2: "),
        (("num_images = 8", "num_images = 900"), "row nothing at all: num_images is 900"),
        (("num_images = 8", "theta = 0.3"), "row nothing at all: theta is 0.3"),
        (("num_images = 8", 'defense = "patchcleanser:patch=3x3"'), "row nothing at all: patch is 5x5, but the masks"),
        (("num_images = 8", 'attacks = "undefended:pgd:1"'), "row nothing at all: attack undefended-pgd-1 ignores"),
        (("num_images = 8", 'voting = "scores"'), "row nothing at all: voting is scores"),
        (('dataset = "mnist-sample"', 'dataset = "mnist-sample"\npatch = "40x40"'), "row columns of width 2: "),
        (('dataset = "mnist-sample"', 'dataset = "numbers"'), "numbers"),
    ],
)
def test_a_row_that_cannot_be_done_is_refused_before_any_is(board, tmp_path, change, said):
    board.write_text(board.read_text().replace(*change))
    result = run(board, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_a_row_that_is_not_on_the_board_is_refused(board, tmp_path):
    result = run(board, "--output", tmp_path / "out", "--only", "nothing")
    assert result.exit_code == 2
    assert "the board has columns of width 2, nothing at all" in " ".join(result.output.split())


def test_a_page_of_the_board(finished):
    """Each row with its report, which shows images, and its command; what names hold is text."""
    html = (finished / "leaderboard.html").read_text()
    (rows,) = [part.partition("</tbody>")[0] for part in html.split("<tbody>")[1:]]
    assert rows.count("<tr ") == 2
    assert 'href="./columns-of-width-2/attacked/report.html"' in rows
    assert "proof bundle" not in rows
    assert "data:image" in (finished / "columns-of-width-2" / "attacked" / "report.html").read_text()
    command = f"robustpatch leaderboard {finished.parent}/board.toml --only &#39;nothing at all&#39;"
    assert f"<code>{command} --dataset mnist-sample</code>" in rows
    assert 'data-task="recovery"' in rows
    assert 'data-task="none"' in rows
    assert "://" not in html, "nothing is fetched"


def test_the_bundle_of_a_row(output):
    """Made of the row's run by the usual command; the page then links it."""
    attacked = output / "columns-of-width-2" / "attacked"
    made = CliRunner().invoke(bundle, [str(attacked), "--output", str(attacked / "bundle.zip")])
    assert made.exit_code == 0, made.output
    page = output.parent / "pages" / "all.html"
    result = CliRunner().invoke(boards, [str(output), str(output), "--output", str(page)])
    assert result.exit_code == 0, result.output
    assert "4 rows" in result.output
    link = "../out/columns-of-width-2/attacked/bundle.zip"
    assert page.read_text().count(f'<a href="./{link}">proof bundle</a>') == 2
    assert (page.parent / link).exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["rows"][0].update(task="magic"), "known task"),
        (lambda content: content["rows"][0].pop("report"), "a row has no report; repeat the board's command"),
        (lambda content: content["rows"].append(3), "a row has no name"),
        (lambda content: content["rows"][0].update(clean="all"), "clean is 'all'"),
        (lambda content: content.pop("rows"), "holds no leaderboard.json"),
    ],
)
def test_a_page_of_what_is_no_board(output, change, said):
    content = json.loads((output / "leaderboard.json").read_text())
    change(content)
    (output / "leaderboard.json").write_text(json.dumps(content))
    result = CliRunner().invoke(boards, [str(output), "--output", str(output.parent / "all.html")])
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert not (output.parent / "all.html").exists()


def test_names_on_the_page_are_text(output):
    content = json.loads((output / "leaderboard.json").read_text())
    content["rows"][0] |= {"name": '"><script>alert(1)</script>', "patch": "'<b>"}
    (output / "leaderboard.json").write_text(json.dumps(content))
    page = output.parent / "all.html"
    assert CliRunner().invoke(boards, [str(output), "--output", str(page)]).exit_code == 0
    assert "<script>alert" not in page.read_text()
    assert "<b>" not in page.read_text()


def test_the_template_of_a_submission():
    read = read_board(Path(__file__).parents[2] / "examples" / "submission.toml")
    assert [plan(entry, read.images.load()).settings.num_images for entry in read.entries] == [50]

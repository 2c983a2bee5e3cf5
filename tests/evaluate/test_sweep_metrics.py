"""rows -> numbers, choices, tables and pictures, from sweeps written by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from evaluate.results.metrics import Share
from evaluate.results.published import PUBLISHED, published
from evaluate.sweep import Choice, choice_by, family_and_size, settings_of
from evaluate.sweep.columns import top_column
from evaluate.sweep.figures import against_clean, draw
from evaluate.sweep.metrics import by_family, envelope, telling_sides
from evaluate.sweep.table import markdown
from robustpatch.ablations.parse import parse_ablation
from robustpatch.errors import InvalidInput
from tests.evaluate.sweeps import written

THIRD, FOURTH = "threshold:0.3", "threshold:0.4"
ABLATIONS = {"wide": "columns:6", "narrow": "columns:2", "square": "blocks:8"}
ROWS = {  # images: classified correctly, largest square by the exact certificate, by the margin
    ("wide", THIRD): [(True, 4, 4), (True, 1, 0), (False, 4, 4), (True, 0, 0)],
    ("wide", FOURTH): [(True, 3, 3), (True, 2, 1), (True, 1, 1), (False, 0, 0)],
    ("narrow", THIRD): [(True, 2, 2), (True, 2, 1), (True, 2, 1), (True, 1, 0)],
    ("narrow", FOURTH): [(True, 2, 2), (True, 2, 2), (True, 2, 2), (False, 2, 2)],
    ("square", THIRD): [(False, 3, 3)] * 4,
    ("square", FOURTH): [(False, 3, 3)] * 4,
}


@pytest.fixture
def run():
    return written(ROWS, ABLATIONS)


@pytest.fixture
def settings(run):
    return settings_of(run)


@pytest.fixture
def choice(settings):
    return Choice({setting.key: setting for setting in settings}, "these validation images")


@pytest.mark.parametrize(
    ("ablation", "expected"),
    [
        ("columns:2", ("columns", 2)),
        ("rows:11", ("rows", 11)),
        ("blocks:8", ("blocks", 8)),
        ("columns:19/10", ("columns:s/10", 19)),
        ("blocks:4x6", ("blocks:sx6", 4)),
        ("2*grid-columns:1", ("2*grid-columns", 1)),
        ("3*grid-blocks:4", ("3*grid-blocks", 4)),
    ],
)
def test_families_and_sizes(ablation, expected):
    """Every ablation as it writes itself, those on grids too; strides and widths belong to the family."""
    assert family_and_size(str(parse_ablation(ablation))) == expected


def test_an_ablation_without_a_size_is_refused():
    """Nothing is guessed."""
    with pytest.raises(InvalidInput, match="name it KIND:SIZE"):
        family_and_size("stripes")


def test_numbers_of_a_setting(settings):
    """Wrongly classified images count nowhere, whatever is certified of them."""
    wide, narrow = settings[0], settings[2]
    assert (wide.checkpoint, wide.voting, wide.family, wide.size) == ("wide", THIRD, "columns", 6)
    assert (wide.clean, wide.exact["2x2"], wide.margin["2x2"]) == (Share(3, 4), Share(1, 4), Share(1, 4))
    assert wide.exact_by_side == (2, 1, 1, 1)
    assert wide.margin_by_side == (1, 1, 1, 1)
    assert (wide.median_side, wide.mean_side) == (0.5, 1.25)
    assert (wide.close_votes, wide.votes) == (6, 4 * 5 * 4)
    assert (narrow.exact["2x2"], narrow.margin["2x2"]) == (Share(3, 4), Share(1, 4))
    assert (narrow.median_side, narrow.mean_side) == (2, 1.75)
    found = json.loads(json.dumps(wide.as_dict()))
    interval = binomtest(1, 4).proportion_ci(0.95, method="exact")
    assert found["exact"]["2x2"]["interval95"] == [interval.low, interval.high]
    assert found["exact_by_side"] == [2, 1, 1, 1]
    assert (found["family"], found["size"], found["clean"]["hits"]) == ("columns", 6, 3)


def test_families_are_sorted_by_size(settings):
    """Families in the order of the command, sizes ascending, voting rules in order."""
    found = {family: [str(setting) for setting in some] for family, some in by_family(settings).items()}
    assert found == {
        "columns": [f"narrow, {THIRD}", f"narrow, {FOURTH}", f"wide, {THIRD}", f"wide, {FOURTH}"],
        "blocks": [f"square, {THIRD}", f"square, {FOURTH}"],
    }


def test_choices(settings, choice):
    """Against a patch by certified, then clean accuracy; for all sides by the mean side; at each side by that side."""
    assert str(choice.against(settings, "2x2")) == f"narrow, {THIRD}"  # 3 of 4 certified as with 0.4, but 4 correct
    assert str(choice.for_all_sides(settings)) == f"narrow, {THIRD}"
    assert [choice.at_side(settings, m).checkpoint for m in (1, 2, 3, 4)] == ["narrow", "narrow", "wide", "wide"]
    assert choice.at_side(settings, 3).voting == FOURTH  # 1 image as with 0.3, but more over all sides
    assert envelope(settings) == [4, 3, 1, 1]
    assert telling_sides(settings) == range(1, 5)
    found = choice.as_dict(settings, ["2x2"])
    assert found["by_family"]["2x2"] == {"columns": f"narrow, {THIRD}", "blocks": f"square, {THIRD}"}
    assert found["at_side"][3] == f"wide, {THIRD}"


def test_validation_images_choose_for_test_images(run):
    """The setting that is best on validation is taken, though another is better on the images reported."""
    better = {key: [(True, 4, 4)] * 4 if key == ("wide", THIRD) else ROWS[key] for key in ROWS}
    test = settings_of(written(better, ABLATIONS, split="test"))
    wanted = {setting.key: str(setting) for setting in test}
    choice = choice_by(run, wanted, ["2x2"])
    assert choice.images == "4 mnist validation images"
    best = choice.against(test, "2x2")
    assert (str(best), best.exact["2x2"].hits) == (f"narrow, {THIRD}", 3)
    assert choice.against([s for s in test if s.checkpoint == "wide"], "2x2").voting == FOURTH
    assert choice.for_all_sides(test) is best


def test_choices_that_cannot_be_made(run):
    """Made on test images; without a setting; without a patch."""
    with pytest.raises(InvalidInput, match="choose_by is a sweep of test images; name one with --split validation"):
        choice_by(written(ROWS, ABLATIONS, split="test"), {}, [])
    with pytest.raises(InvalidInput, match="choose_by lacks other, top1; 3x3 patch; sweep those very weights"):
        choice_by(run, {("sha", "top1"): "other, top1"}, ["2x2", "3x3"])


def lines_of(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_the_table_of_a_validation_sweep(run, settings, choice):
    """Ours with intervals, the best of each family in bold, and the choice for squares of unknown side."""
    text = markdown(run, settings, choice)
    assert text.startswith("# 4 mnist validation images\n")
    assert "chosen on these validation images" in text
    assert f"guard 0.0001; 36 of {6 * 80} votes close" in text
    bold = lines_of(text, "| **")
    assert len(bold) == 2
    assert bold[0] == (
        "| **columns:2** | threshold:0.3 | narrow | 100.00 (39.8–100.0) | 25.00 (0.6–80.6) | **75.00 (19.4–99.4)** "
        "| 2 | – |"
    )
    assert lines_of(text, "| columns:6 | threshold:0.3")[0].endswith(
        "| 25.00 (0.6–80.6) | 25.00 (0.6–80.6) | 0.5 | – |"
    )
    assert "One setting fixed for all sides, narrow, threshold:0.3 (median 2)" in text
    assert lines_of(text, "| 4 |") == ["| 4 | 0.00 | 25.00 | wide, threshold:0.3 |"]
    assert "envelope" not in text


def test_top_k_accuracies():
    """The label's rank below k, clean; a margin of at least 0, certified: in the table, and as JSON."""
    run = written(ROWS, ABLATIONS)
    run.configuration["top_k"] = [1, 3]
    for columns in run.columns.values():
        columns["rank"] = np.array([0, 2, 3, 1])
        columns[top_column(1, "2x2")] = np.array([0, -3, -9, -1])
        columns[top_column(3, "2x2")] = np.array([4, -1, -2, 0])
    settings = settings_of(run)
    assert settings[0].clean_top == {1: Share(1, 4), 3: Share(3, 4)}
    assert settings[0].certified_top == {"2x2": {1: Share(1, 4), 3: Share(2, 4)}}
    found = json.loads(json.dumps(settings[0].as_dict()))
    assert {k: share["hits"] for k, share in found["clean_top"].items()} == {"1": 1, "3": 3}
    assert found["certified_top"]["2x2"]["3"]["hits"] == 2
    text = markdown(run, settings, None)
    header, row = (lines_of(text, start)[0].split(" | ") for start in ("| ablation", "| columns:2 "))
    cells = dict(zip(header, row, strict=True))
    assert [cells[f"top {k} {what}"].split()[0] for k in (1, 3) for what in ("clean", "certified")] == [
        "25.00",
        "25.00",
        "75.00",
        "50.00",
    ]
    assert "- top k: the label is among the k classes with the most votes" in text
    plain = settings_of(written(ROWS, ABLATIONS))
    assert (plain[0].clean_top, plain[0].certified_top) == ({}, {})
    assert "top " not in markdown(written(ROWS, ABLATIONS), plain, None)


def test_the_table_of_a_test_sweep_without_a_choice(settings):
    """Nothing is called best, and what no choice can reach is called an envelope."""
    run = written(ROWS, ABLATIONS, split="test")
    text = markdown(run, settings, None)
    assert "# 4 mnist test images" in text
    assert "no setting is called best" in text
    assert "**" not in text
    assert "fixed" not in text
    assert lines_of(text, "| 3 |") == ["| 3 | 25.00 |"]


def test_the_paper_stands_beside(run):
    """Its numbers for the very setting, for any threshold where it is not noted, and a dash where nothing is known."""
    images = [(True, 5, 5), (True, 4, 4)]
    rows = {(name, voting): images for name in ("c", "r", "d") for voting in (THIRD, FOURTH, "top1")}
    by_hand = written(rows, {"c": "columns:2", "r": "rows:2", "d": "columns:3"}, side=5, image_size=(28, 28))
    text = markdown(by_hand, settings_of(by_hand), None)
    assert [line.split("|")[-2].strip() for line in lines_of(text, "| columns:2 ")] == ["96.66 / 52.83", "–", "–"]
    assert [line.split("|")[-2].strip() for line in lines_of(text, "| rows:2 ")] == ["93.66 / 45.35†"] * 2 + ["–"]
    assert {line.split("|")[-2].strip() for line in lines_of(text, "| columns:3 ")} == {"–"}
    assert "† the paper's best threshold" in text
    assert "†" not in markdown(run, settings_of(run), None)


def test_published_numbers():
    """One entry for each setting, accuracies in percent with certified below clean, a source everywhere."""
    keys = [(one.dataset, one.ablation, one.voting, one.patch) for one in PUBLISHED]
    assert len(set(keys)) == len(keys)
    for one in PUBLISHED:
        assert 0 < one.certified < (99.9 if one.clean is None else one.clean) < 100
        assert "arXiv:2002.10733" in one.source
    found = published("mnist-sample", "columns:2", "threshold:0.3", "5x5")
    assert found is not None
    assert "Table 1" in found.source
    assert str(published("mnist", "columns:6", "randomized", "5x5")) == "– / 16.48"
    for other in (
        ("cifar10", THIRD, "5x5"),
        ("mnist", FOURTH, "5x5"),
        ("mnist", "top1", "5x5"),
        ("mnist", THIRD, "4x4"),
    ):
        dataset, voting, patch = other
        assert published(dataset, "columns:2", voting, patch) != found


def test_the_pictures(run, settings, choice, tmp_path):
    """Each as PNG and SVG, the SVG equal whenever the sweep is; with what they are of in the text."""
    for folder in ("once", "again"):
        (tmp_path / folder).mkdir()
        names = draw(run, settings, choice, tmp_path / folder)
        paths = [tmp_path / folder / name for name in names]
    assert [path.name for path in paths] == ["size-2x2.png", "tradeoff-2x2.png", "side.png"]
    for path in paths:
        assert path.read_bytes()[:4] == b"\x89PNG"
        again, once = path.with_suffix(".svg"), tmp_path / "once" / path.with_suffix(".svg").name
        assert len(again.read_bytes()) > 5_000
        assert again.read_bytes() == once.read_bytes()
    text = (tmp_path / "once" / "side.svg").read_text()
    assert "columns, threshold:0.4" in text  # the rule that the checkpoints were made for
    assert "envelope" not in text
    assert "best for each side" in text


def test_the_trade_of_clean_against_certified(run, settings):
    """A line for each checkpoint, at each point its threshold; a top-1 rule is a point on no line."""
    axes = against_clean(run, settings, "2x2").axes[0]
    assert [text.get_text() for text in axes.texts] == ["0.3", "0.4"] * 3
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines["wide"] == [[75, 25], [75, 50]]
    assert lines["narrow"] == [[100, 75], [75, 75]]
    top1 = [replace(s, voting="top1") if s.voting == FOURTH else s for s in settings]
    axes = against_clean(run, top1, "2x2").axes[0]
    assert sorted(len(line.get_xydata()) for line in axes.get_lines()) == [1] * 6


def test_pictures_of_any_threat_lie_in_the_folder(run, settings, tmp_path):
    """A text with slashes, colons or an ampersand names no other place, and two texts no one file."""
    patches = ["mask:../a/b.png", "mask:../a/b-png", "disc:3 & 2x2"]
    shapes = replace(run, configuration={**run.configuration, "patches": patches})
    told = [replace(s, exact=dict.fromkeys(patches, s.clean), margin=dict.fromkeys(patches, s.clean)) for s in settings]
    names = draw(shapes, told, None, tmp_path)
    assert len(set(names)) == 7
    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".png"} == set(names)


def test_several_patches_have_a_picture_each(run, settings, tmp_path):
    """Named by the patch, without a star; without a choice an envelope; one that certifies nothing is drawn as well."""
    twice = replace(run, configuration={**run.configuration, "patches": ["2*2x2"]})
    nothing = [
        replace(s, exact={"2*2x2": s.clean}, margin={"2*2x2": s.clean}, exact_by_side=(0,) * 4) for s in settings
    ]
    draw(twice, nothing, None, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    pictures = ("size-2of2x2", "tradeoff-2of2x2", "side")
    assert names == {f"{name}.{ending}" for name in pictures for ending in ("png", "svg")}
    assert telling_sides(nothing) == range(1, 2)
    text = (tmp_path / "side.svg").read_text()
    assert "envelope" in text
    assert "best for each side" not in text


def test_of_many_sides_the_table_shows_some(settings):
    """The first, the last that tells something, and between them so many evenly; each with its own number."""
    run = written(ROWS, ABLATIONS, split="test")
    sides = tuple(3 if m < 87 else 1 if m < 100 else 0 for m in range(1, 225))
    text = markdown(run, [replace(one, exact_by_side=sides) for one in settings], None)
    shown = [line.split(" | ") for line in text.split("Squares of unknown side")[1].splitlines() if line[2:3].isdigit()]
    assert [int(line[0][2:]) for line in shown] == [1, *range(3, 100, 3), 100]
    assert [line[1] for line in shown] == ["75.00 |"] * 29 + ["25.00 |"] * 5 + ["0.00 |"]

"""The report: its numbers are the run's, it needs nothing but itself, and it says what it does not know."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from importlib import resources

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from attacks import Ensemble, ExhaustivePGD, PatchPGD
from evaluate import Settings, evaluate, summarise
from evaluate import attack_vs_cert as command
from evaluate.report import Report, page, read_report, write_report
from evaluate.report.__main__ import app
from evaluate.report.note import budgets, command_of
from evaluate.results.metrics import Gap, as_json
from evaluate.results.report_columns import ATTACKS as ATTACK_COLUMNS
from evaluate.results.sentences import gap_text
from evaluate.runs.gallery import Attacked, Exhibit, exhibits_name, outcome, write_exhibits
from evaluate.runs.records import read_records, shard_name, write_shard
from evaluate.runs.run_identity import claim
from evaluate.runs.threat_maps import PlacementMap
from robustpatch.errors import InvalidInput
from robustpatch.threats.any_of import AnyOf
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Plain, images
from tests.evaluate.calls import call, refused
from tests.evaluate.cli.test_command import QUICK, planted
from tests.evaluate.pages import Page, colours, contrast, faults
from tests.evaluate.planted import PLANTS, exposing, image_set
from tests.evaluate.results.test_metrics import attack, record
from tests.evaluate.runs.test_gallery import Theirs
from tests.evaluate.runs.test_runner import ATTACKS, SIZE, THREAT, classifier, run, scene

WICKED = '<script>alert("1")</script>&|`*'


def html_of(folder) -> str:
    html = page(read_report(folder))
    assert faults(html) == []
    return html


def rendered(folder) -> str:
    """The Markdown as HTML, raw HTML let through where there is any."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render((folder / "report.md").read_text())


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    result = call("--checkpoint", checkpoint, *QUICK, "--output", folder)
    assert result.exit_code == 0, result.output
    return folder, result


def test_a_run_ends_with_its_report(finished):
    """The numbers on the page, in Markdown and in JSON are those of summary.json, and the verdict the terminal's."""
    folder, result = finished
    assert f"report in {folder}/report.html" in result.stdout
    summary = json.loads((folder / "summary.json").read_text())
    stored = json.loads((folder / "report.json").read_text())
    assert stored["summary"] == summary
    assert stored["finished"] is True
    html = (folder / "report.html").read_text()
    assert faults(html) == []
    seen, tiles = Page.of(html), {}
    for name in ("clean", "certified_margin", "certified_exact", "under_all"):
        low, high = summary[name]["interval95"]
        tiles[name] = f"{summary[name]['value']:.1%} {low:.1%}–{high:.1%}"
    assert seen.said("dd") == [tiles[name] for name in ("clean", "under_all", "certified_exact")]
    means = ("right when nobody attacks", "still right after every attack tried", "right, and proved to stay so")
    names = ("clean", "under all attacks", "certified (exact)")
    assert seen.said("dt") == [name + mean for name, mean in zip(names, means, strict=True)]
    assert tiles["certified_margin"] in rendered(folder).replace('</td>\n<td style="text-align:right">', " ")
    assert seen.said(".verdict") == ["HELD " + "N" + stored["verdict"].removeprefix("HELD: n") + "."]
    assert stored["verdict"] in " ".join(result.stdout.split())
    for value in tiles.values():
        accuracy, interval = value.split(" ")
        assert f'>{accuracy}</td>\n<td style="text-align:right">{interval}</td>' in rendered(folder)
    for text in (seen.said("main")[0], rendered(folder)):
        assert "the guard, 0.0001, between two evaluations (largest deviation measured:" in text
        assert "confidence 100%" in text
        assert f"{summary['close_votes']} of {summary['votes']:,} votes" in text
    assert all(given["href"][1:] in {one.get("id") for _, one in seen.attributes} for given in seen.all("a"))
    assert "robustpatch compare RUN" in seen.said("pre")[1]


def test_commands_are_as_they_are_typed():
    """A program by its name, a module of the package by python -m; what a shell would take apart is quoted."""
    assert command_of("/some/where/evaluate/attack_vs_cert.py --seed 1") == "python -m evaluate.attack_vs_cert --seed 1"
    for path, module in (
        ("/clone/evaluate/sweep/__main__.py", "evaluate.sweep"),
        ("/site-packages/robustpatch/evaluate/attack_vs_cert.py", "robustpatch.evaluate.attack_vs_cert"),
        ("/site-packages/robustpatch/train.py", "robustpatch.train"),
    ):
        assert command_of(path) == f"python -m {module}"
    assert command_of("/usr/bin/robustpatch attack-vs-cert --patch '2*5x5'") == (
        "robustpatch attack-vs-cert --patch '2*5x5'"
    )
    assert command_of(None) is None


def test_equal_records_give_equal_files(finished, tmp_path):
    """Rebuilt from the folder, all three files are the same bytes; --output puts them elsewhere."""
    folder, _ = finished
    result = CliRunner().invoke(app, [str(folder), "--output", str(tmp_path / "new")])
    assert result.exit_code == 0, result.output
    for ending in ("html", "md", "json"):
        assert (tmp_path / "new" / f"report.{ending}").read_bytes() == (folder / f"report.{ending}").read_bytes()


def test_the_json_is_the_documented_form(finished):
    """Field for field `Report`, of which each is described."""
    stored = json.loads((finished[0] / "report.json").read_text())
    assert list(stored) == [field.name for field in fields(Report)]
    assert stored["schema"] == "robustpatch-report/1"
    assert all(f"{name}" in Report.__doc__ for name in stored)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run of ten small images, and its records."""
    folder = tmp_path_factory.mktemp("small")
    return folder, run(folder)


@pytest.fixture
def copied(small, tmp_path):
    """A copy of it that may be changed."""
    return shutil.copytree(small[0], tmp_path / "copy")


def test_tables_and_gallery_are_of_the_records(small):
    """Sides, classes, parts, attacks and cards, counted again from the records."""
    folder, records = small
    report = read_report(folder)
    summary = summarise(records)
    assert report.parts == {
        kind: sum((outcome(r) if r.correct or outcome(r) != "certified" else "wrong") == kind for r in records)
        for kind in ("certified", "standing", "broken", "wrong", "violated")
    }
    assert sum(report.parts.values()) == len(records)
    assert report.parts["certified"] == summary.certified_exact.hits
    assert report.parts["certified"] + report.parts["standing"] == summary.under_all.hits
    assert report.sides[2].hits == summary.certified_exact.hits  # the threat is 2x2
    assert {m: share.hits for m, share in report.sides.items()} == {
        m: sum(r.correct and r.largest_certified >= m for r in records) for m in range(1, len(report.sides) + 1)
    }
    assert list(report.sides.values())[-1].hits == 0
    assert [row.accuracy for row in report.attacks] == [one.accuracy for one in summary.attacks.values()]
    assert [row.broken for row in report.attacks] == [
        sum(r.correct and any(a.broken for a in r.attacks if a.attack == name) for r in records)
        for name in summary.attacks
    ]
    for part in ("clean", "certified", "under_all"):
        whole = {"certified": "certified_exact"}.get(part, part)
        assert sum(getattr(row, part).hits for row in report.classes) == getattr(summary, whole).hits
    assert {card.index for card in report.cards} == {r.index for r in records}, "those that were wrong before, too"
    for card in report.cards:
        assert card.outcome == outcome(records[card.index])
        assert card.maps[0].worst == card.margin == records[card.index].margin_exact
        if card.attacked:
            top = max(card.votes, key=lambda row: row.after)
            assert top.name == card.attacked.prediction
    html = html_of(folder)
    seen = Page.of(html)
    assert len(seen.all("article")) == len(report.cards)
    assert seen.said("button")[0] == f"all {len(report.cards)}"
    assert "UNFINISHED" not in html


def test_members_and_budgets(tmp_path):
    """Which member of an ensemble broke how many, and each attack's own budget; "its own" where it names none."""
    attacks = (Ensemble(ATTACKS, "both", budget=900), PatchPGD(steps=1, restarts=1))
    run(tmp_path, attacks=attacks)
    both, alone = read_report(tmp_path).attacks
    assert (both.budget, alone.budget) == (900, None)
    assert sum(both.members.values()) == both.broken > 0
    assert set(both.members) <= {"pgd-2", "exhaustive"}
    assert alone.members == {}
    assert budgets({"attacks": ["Theirs(budget=7)", "<object at 0x1>", "Other(budget='no')"]}) == [7, None, None]


def test_a_broken_certificate(tmp_path):
    """BROKEN, the images shown first, and the command that shows each again."""
    plant = PLANTS["delta one less"]
    model, x = plant.broken(), exposing(plant)
    data = image_set(x, model.predict(x), plant.classes)
    settings = Settings(len(x), certified_budget=None)
    evaluate(model, data, plant.threat, (ExhaustivePGD(steps=8, rounds=1),), settings, tmp_path)
    report = read_report(tmp_path)
    assert report.cards[0].outcome == "violated"
    assert report.parts["violated"] > 0
    assert len(report.replays) == len(list((tmp_path / "counterexamples").iterdir())) > 0
    seen = Page.of(html_of(tmp_path))
    assert seen.said(".verdict")[0].startswith("BROKEN ")
    assert "bad" in seen.all("p")[2]["class"]
    assert all(replay in seen.said("pre")[0] for replay in report.replays)
    assert "certified, yet changed" in seen.said("h3")[0]
    assert "the proof is wrong, or what it assumes is" in seen.said("main")[0]
    assert "neither has decided" not in seen.said("main")[0]


def test_a_failing_report_does_not_hide_a_broken_certificate(checkpoint, tmp_path, monkeypatch):
    """Status 1 stays 1, with the traceback; where all held, the failure is an internal error."""

    def burst(_):
        raise RuntimeError("a defect of the report")

    monkeypatch.setattr(command, "write_report", burst)
    held = call("--checkpoint", checkpoint, *QUICK, "--output", tmp_path / "held")
    assert held.exit_code == 3
    monkeypatch.setattr("evaluate.model.load.load_model", lambda *_, **__: planted(checkpoint))
    given = ["--checkpoint", checkpoint, "--attacks", "pgd:3", "--steps", 4, "--num-images", 4]
    broken = call(*given, "--output", tmp_path / "broken")
    assert broken.exit_code == 1
    assert "a defect of the report" in broken.stderr
    assert "--replay" in broken.stdout


def test_without_a_certificate(tmp_path):
    """NO CERTIFICATE; a dash and the reason in place of certified accuracy; neither bars nor map nor sides."""
    x = images(8, SIZE)
    model = Plain(SIZE[0] * SIZE[1]).eval()
    evaluate(model, image_set(x, model(x).argmax(dim=1), 3), THREAT, ATTACKS, Settings(8), tmp_path)
    seen = Page.of(html_of(tmp_path))
    assert seen.said(".verdict")[0].startswith("NO CERTIFICATE ")
    assert seen.said("dd")[2] == "– no certificate"
    assert "what these attacks left" in seen.said("main")[0]
    assert "patch size" not in seen.said("main")[0]
    assert "not certified:" not in " ".join(seen.said("h3"))
    assert (seen.said(".votes"), seen.said(".heat"), seen.said(".chart")) == ([], [], [])
    assert seen.said("article")


def test_somebody_elses_certifier(tmp_path):
    """Certificates without votes, margin or map: numbers and pictures, and nothing made up."""
    x = images(8, SIZE)
    model = Theirs(SIZE[0] * SIZE[1]).eval()
    evaluate(model, image_set(x, model.predict(x), 3), THREAT, ATTACKS, Settings(8), tmp_path)
    report = read_report(tmp_path)
    assert report.summary["certified_exact"] is not None
    assert "the guard, 0.01, between" in report.assumption
    seen = Page.of(html_of(tmp_path))
    assert seen.said("article")
    assert (seen.said(".votes"), seen.said(".heat"), seen.said(".chart")) == ([], [], [])
    assert "nothing is known of other patch sizes" in seen.said("main")[0]


def test_without_attacks(tmp_path):
    """NOT TESTED; accuracy under attack is not said to be the clean one, and nothing is said to stand."""
    run(tmp_path, attacks=())
    write_report(tmp_path)
    seen = Page.of(html_of(tmp_path))
    assert seen.said(".verdict")[0].startswith("NOT TESTED ")
    assert seen.said("dd")[1] == "– no attack was run"
    assert "No attack was run." in seen.said("main")[0]
    assert "standing" not in seen.said("main")[0]
    assert "standing" not in rendered(tmp_path)
    assert seen.said("article")
    assert seen.said(".outline") == []


def test_without_a_gallery(tmp_path):
    """--gallery 0 leaves the pictures out and says so."""
    run(tmp_path, gallery=0)
    seen = Page.of(html_of(tmp_path))
    assert seen.said("article") == []
    assert "(--gallery 0)" in seen.said("main")[0]


@pytest.mark.parametrize("threat", [PatchThreat(1, 1, 2), AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)])], ids=str)
def test_other_threats(threat, tmp_path):
    """Two patches are outlined both, without a map; of two shapes each has its map."""
    run(tmp_path, threat=threat, attacks=ATTACKS[:1])
    report = read_report(tmp_path)
    html_of(tmp_path)
    count = threat.threats[0].count
    assert all(len(card.maps) == (0 if count > 1 else 2) for card in report.cards)
    assert all(len(card.attacked.boxes) == count for card in report.cards if card.attacked)


def test_an_unfinished_run_says_so(copied):
    """Prominently, in all three files; a summary of other images is not used, nor exhibits without records."""
    tmp_path = copied
    (tmp_path / "summary.json").write_text(json.dumps({"command": "x", "measured_deviation": 1.0}))
    (tmp_path / shard_name(4, 8)).unlink()
    assert (tmp_path / exhibits_name(shard_name(4, 8))).exists()
    result = CliRunner().invoke(app, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    seen = Page.of((tmp_path / "report.html").read_text())
    assert seen.said(".unfinished")[0].startswith("UNFINISHED 6 of 10 images are done")
    assert "<strong>UNFINISHED</strong>: 6 of 10 images" in rendered(tmp_path)
    stored = json.loads((tmp_path / "report.json").read_text())
    assert (stored["finished"], stored["images"], stored["planned"], stored["command"]) == (False, 6, 10, None)
    assert stored["summary"]["clean"] == as_json(summarise(read_records(tmp_path)).clean)
    assert {card["index"] for card in stored["cards"]} <= {0, 1, 2, 3, 8, 9}


def test_names_are_escaped(tmp_path):
    """Whatever data set, classes, attacks and configuration are called, the page has our one script and no more."""
    data = replace(scene(), name=WICKED, class_names=(WICKED, "b", "c"))
    attacks = (replace(ATTACKS[0], label=WICKED),)
    settings = Settings(10, batch_size=4, certified_budget=500)
    odd = {"checkpoint": WICKED, "ablation": WICKED, "voting": WICKED, WICKED: WICKED}
    evaluate(classifier(), data, THREAT, attacks, settings, tmp_path, configuration=odd)
    write_report(tmp_path)
    seen = Page.of(html_of(tmp_path))
    assert len(seen.all("script")) == 1
    assert WICKED in seen.said("h1")[0]
    assert WICKED in seen.said("article")[0]
    again = rendered(tmp_path)
    assert "<script" not in again
    assert "<em>" not in again
    for row in again.split("</tr>")[:-1]:
        assert row.count("<td") in (0, 2, 3, 4, 5, len(ATTACK_COLUMNS))


def folder_of(tmp_path, records, exhibits, **configuration):
    """A run's folder made by hand."""
    given = {
        "num_images": len(records),
        "dataset": "toy",
        "threat": "39x39",
        "gallery": 8,
        "certified_budget": 50,
        **configuration,
    }
    whose = claim(tmp_path, given)
    name = shard_name(0, len(records))
    written = write_exhibits(tmp_path, exhibits_name(name), exhibits)
    write_shard(tmp_path, name, records, whose, files=[exhibits_name(name)] if written else [])
    return tmp_path


def test_sides(tmp_path):
    """Classified correctly and certified against that side, up to the first that nothing is certified against."""
    records = [replace(record(i, correct=i != 3), largest_certified=side) for i, side in enumerate((3, 1, 0, 2))]
    report = read_report(folder_of(tmp_path / "some", records, []))
    assert {m: (share.hits, share.total) for m, share in report.sides.items()} == {
        1: (2, 4),
        2: (1, 4),
        3: (1, 4),
        4: (0, 4),
    }
    without = read_report(folder_of(tmp_path / "none", [replace(records[0], largest_certified=None)], []))
    assert without.sides == {}


def test_a_wrong_image_is_not_broken_by_an_attack(tmp_path):
    """One certified for a wrong class and changed counts against the certificate, not among those an attack broke."""
    records = [
        record(0, exact=True, correct=False, attacks=[attack(broken=True)]),
        record(1, attacks=[attack(broken=True)]),
        record(2, attacks=[attack()]),
    ]
    report = read_report(folder_of(tmp_path, records, []))
    assert report.attacks[0].broken == 1
    assert report.attacks[0].accuracy.hits == 1
    assert report.parts == {"certified": 0, "standing": 1, "broken": 1, "wrong": 0, "violated": 1}


def test_large_images_make_no_large_page(tmp_path):
    """32 colour images of 224x224 noise, a thousand classes: below 5 MB. Names beyond those known are numbers."""
    chance = np.random.default_rng(0)
    records = [replace(record(i, exact=i % 2 == 0, attacks=[attack()]), label=i, prediction=i) for i in range(32)]

    def noise(*shape):
        return chance.integers(0, 256, shape, dtype=np.uint8)

    def shown(i):
        votes = chance.integers(0, 5, 1000, dtype=np.int32)
        what = ([(0, 185)], (39, 39), "a", None, False, i, votes)
        margins = chance.integers(-99, 99, (93, 93)).astype(np.int16)
        maps = [PlacementMap((39, 39), (186, 186), 2, margins)]
        attacked = Attacked(noise(3, 112, 112), noise(1, 3, 39, 39), *what)
        return Exhibit(
            i, outcome(records[i]), (224, 224), noise(3, 112, 112), 224, False, votes, votes, attacked, maps, 1e-4
        )

    folder = folder_of(tmp_path, records, [shown(i) for i in range(32)], class_names=["a", "b"])
    report = read_report(folder)
    assert len(report.cards) == 16  # eight of either outcome
    html = html_of(folder)
    assert len(html.encode()) * 2 < 5e6
    card = report.cards[-1]
    assert len(card.votes) == 6
    assert card.other_classes > 700
    assert card.label in [row.name for row in card.votes]
    assert card.maps[0].open is None
    assert card.attacked.boxes[0] == pytest.approx((100 * 185 / 224, 0, 100 * 39 / 224, 100 * 39 / 224), abs=1e-3)


def test_wrong_calls(copied, tmp_path):
    """No run, no batch yet, damaged files: one line with the remedy, status 2."""
    ask = CliRunner().invoke
    refused(ask(app, [str(tmp_path / "nothing")]), "holds no run.json; name an --output")
    claim(tmp_path / "begun", {"num_images": 4})
    refused(ask(app, [str(tmp_path / "begun")]), "no batch is finished yet; repeat the run's command first")
    (tmp_path / "begun" / "run.json").write_text("{")
    refused(ask(app, [str(tmp_path / "begun")]), "run.json is damaged")
    (copied / exhibits_name(shard_name(0, 4))).write_bytes(b"PK")
    with pytest.raises(
        InvalidInput, match=r"is damaged \(exhibits/.* is not as it was written\); repeat the run's command"
    ):
        read_report(copied)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme):
    """Text has the contrast of WCAG AA, 4.5 to 1, on all that it stands on; what a picture is made of has 3 to 1."""
    css = resources.files("evaluate.report").joinpath("style.css").read_text()
    colour = colours(css)[scheme]
    grounds = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("ground", "card")]
    grounds += [(f"{kind}-ink", f"{kind}-ground") for kind in ("good", "bad", "doubt")]
    for ink, ground in [*grounds, ("pressed-ink", "pressed")]:
        assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)
    for part in ("proved", "standing", "broken", "wrong", "violated", "after"):
        for ground in ("ground", "card"):
            assert contrast(colour[part], colour[ground]) >= 3, (part, ground)
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(torch.tensor([0.5] * 3).tolist(), (1, 1, 1)) == pytest.approx(3.98, abs=0.01)


@pytest.mark.parametrize(
    ("images", "missing", "refuted", "said"),
    [
        (1, {2: 1}, 1, "1 image is undecided"),
        (1, {1: 1}, 0, "found one that does. The best patch found fell 1 vote short"),
        (2, {2: 1, 4: 1}, 2, "certify them: that takes another classifier. The best patches found fell 2 to 4 votes"),
        (2, {3: 2}, 0, "The best patch found fell 3 votes short on each"),
        (9, {1: 2, 2: 4, 30: 3}, 4, "certify 4 of them: that takes another classifier"),
        (9, {1: 2, 2: 4, 30: 3}, 0, "The best patches found fell 1 to 30 votes short, on half of them at most 2"),
    ],
)
def test_the_gap_in_words(images, missing, refuted, said):
    """Sentences, whatever the numbers: no lists, and one image is one."""
    text = gap_text(Gap(images, refuted, {"5 of 6": images}, missing))
    assert said in text
    assert "5 of 6" not in text
    assert ("1 images" in text, "1 votes" in text) == (False, False)


def test_one_image_is_one(tmp_path):
    """In the title, the verdict and the sentence that leads."""
    records = [record(0, exact=True, attacks=[replace(attack(), patches=1)])]
    report = read_report(folder_of(tmp_path, records, []))
    assert report.title.startswith("1 toy test image, ")
    assert report.survival == "1 of 1 image survives every attack tried; 1 provably survives all"
    assert "1 certified image attacked without pruning, 1 patch judged" in report.verdict


def test_images_that_were_wrong_before(tmp_path):
    """They are in the gallery, with no patch to blame."""
    x = np.zeros((1, 8, 8), np.uint8)
    shown = Exhibit(0, "wrong", (8, 8), x, None, False, None, None, None, [], None)
    records = [record(0, correct=False), record(1, attacks=[attack(broken=True)])]
    seen = Page.of(html_of(folder_of(tmp_path, records, [shown], threat="3x3")))
    assert seen.said("h3") == ["Image 0: wrong before any attack"]
    assert "1 is wrong before any attack." in seen.said("li")[1]
    assert "1 can be fooled" in seen.said("li")[0]

"""The example package beside this one: its names are options, and each of its objects is run by the evaluator."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from attacks import parse_attacks
from evaluate import Settings, evaluate
from robustpatch import Columns, InvalidInput, parse_threat, plugins
from robustpatch.data import load_images
from robustpatch.defenses import known_defenses, parse_defense
from robustpatch.networks import build
from robustpatch.threats import threat_from_dict
from tests import toys

FOLDER = Path(__file__).parents[1] / "examples" / "plugin"
INFO = """[robustpatch.{kind}]\n{name} = {value}\n"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The example as pip installs it: a folder on the path, and beside it what its pyproject.toml says."""
    import tomllib

    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    lines = [
        INFO.format(kind=kind.removeprefix("robustpatch."), name=name, value=value)
        for kind, names in project["entry-points"].items()
        for name, value in names.items()
    ]
    _put(tmp_path, project["name"], "".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(FOLDER)
    plugins._found.cache_clear()
    yield tmp_path
    plugins._found.cache_clear()
    for name in [name for name in sys.modules if name.startswith("robustpatch_example")]:
        del sys.modules[name]


def _put(folder: Path, package: str, lines: str) -> None:
    info = folder / f"{package.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(lines)


def test_each_file_of_the_example_is_short():
    for path in (FOLDER / "robustpatch_example").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path.name


def test_a_run_of_plugins_alone(installed, tmp_path):
    """Its dataset, its network, trained to tell bars apart, its defense, its shape, its attack and its adaptive one."""
    images = load_images("bars", split="test")
    assert images.class_names == ("upright", "lying")
    x, y = images.batch(range(60))
    network = toys.seeded(
        lambda: build("linear", ablation=None, image_shape=(1, 16, 16), num_classes=2, encoding=None, options={})
    )
    steps = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(80):
        steps.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        steps.step()
    model = parse_defense("shades:levels=5").wrap(network, num_classes=2).eval()
    attacks = parse_attacks("white:5,pgd:2", steps=10)
    records = evaluate(model, images, parse_threat("diamond:7"), attacks, Settings(8, gallery=0), tmp_path / "run")
    assert sum(record.prediction == record.label for record in records) >= 7
    assert any(record.attacks[1].broken for record in records)  # by the gradient that rounding hides
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["threat"] == "diamond:7"
    assert threat_from_dict(parse_threat("diamond:7").to_dict()) == parse_threat("diamond:7")


def test_a_shape_of_another_package_touches_what_enumeration_says(installed):
    """The sets of ablations that it touches on 5×6 pixels, which is all that certificates ask."""
    threat, ablation = parse_threat("2*diamond:3"), Columns(2)
    assert str(threat) == "2*diamond:3"
    one = parse_threat("diamond:3", (5, 6))
    footprints = one.threats[0].families(5, 6)[0].footprint(torch.arange(12))
    assert footprints.flatten(1).sum(dim=1).tolist() == [5] * 12
    masks = ablation.masks(5, 6, torch.arange(6))
    expected = {tuple((masks & covered).flatten(1).any(dim=1).tolist()) for covered in footprints}
    touched = ablation.touched(one, 5, 6)
    found = {tuple(row.tolist()) for row in touched.member(torch.arange(len(touched.sizes)))}
    assert found == expected


def test_names_that_are_known_are_shown(installed):
    assert "shades" in known_defenses()
    for call, error in (
        (lambda: parse_attacks("whit"), r"known are .*natural\[:TRIES\], white, undefended:ATTACK"),
        (lambda: parse_defense("shade"), "known are .*shades"),
        (lambda: parse_attacks("white:x"), "is none"),
        (lambda: parse_threat("diamond:4"), "give an odd side"),
    ):
        with pytest.raises(InvalidInput, match=error):
            call()


def test_what_cannot_be_imported_or_is_named_twice_is_refused_by_the_package_s_name(installed):
    _put(installed, "other-one", INFO.format(kind="attacks", name="white", value="other:White"))
    _put(installed, "broken-one", INFO.format(kind="defenses", name="gone", value="no_such_module:Gone"))
    plugins._found.cache_clear()
    with pytest.raises(InvalidInput, match=r"the name white from .*; uninstall one of these"):
        parse_attacks("white")
    _put(installed, "broken-shape", INFO.format(kind="shapes", name="gone", value="no_such_module:Gone"))
    plugins._found.cache_clear()
    assert str(parse_threat("5x5")) == "5x5"  # what needs no other package is not kept from working
    with pytest.raises(InvalidInput, match="the package broken-shape, which cannot be imported"):
        parse_threat("gone:3")
    with pytest.raises(InvalidInput, match=r"gone from the package broken-one, which cannot be imported .*no_such_mod"):
        parse_defense("gone")


def test_names_of_this_package_are_its_own(installed, monkeypatch):
    """No other package takes the place of an attack or a defense by its name."""
    points = [EntryPoint("pgd", "robustpatch_example.attack:White", "robustpatch.attacks")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: points if group == "robustpatch.attacks" else [])
    plugins._found.cache_clear()
    assert type(parse_attacks("pgd")[0]).__name__ == "PatchPGD"

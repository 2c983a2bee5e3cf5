"""An attack, an ablation and a threat's shape, each defined here and named to the package, through the evaluator.

A defense with its adaptive attack is added in `attacks.surfaces.test_own_surface`, a column of the report in
`evaluate.results.test_table` and one of a sweep in `evaluate.test_sweep_runner`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pytest
import torch

from attacks import parse_attacks
from attacks.base import Proposal
from attacks.registry import KNOWN
from evaluate import Settings, evaluate
from evaluate.runs.records import read_records
from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Columns
from robustpatch.ablations.parse import READERS, parse_ablation
from robustpatch.threats.parse import SHAPES, parse_threat, threat_from_dict
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.threats.stamp import Stamp
from tests import oracles
from tests.attacks.toys import Level, images, smoothed
from tests.evaluate.planted import PLANTS, exposing, image_set

NUMBER = 6


def scene(height: int, width: int):
    """Black, grey and white images with any labels: certified and not, classified rightly and wrongly."""
    x = images(NUMBER, (height, width))
    x[0::3], x[1::3, :, :, width // 2 :] = 0, 0
    return image_set(x, torch.arange(NUMBER) % 2 * 2, 3)


def records_of(model, shown, threat, attacks: str, output):
    return evaluate(model, shown, threat, parse_attacks(attacks), Settings(NUMBER, 4, 300, gallery=0), output)


@dataclass(frozen=True)
class White:
    """White patches at so many random placements: the first that changes the prediction, or else the last."""

    tries: int = 200
    budget: int | None = None
    touched_only: ClassVar[bool] = False
    name: ClassVar[str] = "white"

    def unpruned(self, budget: int | None) -> White:
        return self

    def check(self, threat: Any) -> None:
        """Any threat will do."""

    def __call__(self, model, x, y, threat, *, generator) -> Proposal:
        places = threat.placements(*x.shape[2:])
        x_adv, at = x.clone(), places[:1].repeat(len(x), 1)
        spent, going = torch.zeros(len(x)).long(), torch.ones(len(x)).bool()
        for _ in range(self.tries):
            at[going] = places[torch.randint(len(places), (int(going.sum()),), generator=generator)]
            patched = torch.where(threat.footprint(at[:, None], *x.shape[2:])[:, None], 1.0, x)
            x_adv[going], spent = patched[going], spent + going
            going = going & (model.predict(x_adv) == y)
        return Proposal(x_adv, at[:, None], spent, torch.ones(len(x)), broken=~going)


def test_an_attack(tmp_path, monkeypatch):
    """By its name, with a number: it breaks the certificates of a planted bug, and none of the sound twin's."""
    monkeypatch.setitem(KNOWN, "white", (White, "tries"))
    plant = PLANTS[next(name for name in PLANTS if "wrap" in name)]
    x = exposing(plant)[:2]
    for made, broken in ((plant.broken(), True), (plant.sound(), False)):
        shown = image_set(x, made.predict(x), plant.classes)
        settings = Settings(len(x), 4, gallery=0)
        place = tmp_path / str(broken)
        found = evaluate(made, shown, plant.threat, parse_attacks("white:60"), settings, place)
        assert {record.attacks[0].attack for record in found} == {"white"}
        assert any(record.certified_exact and record.attacks[0].broken for record in found) == broken
    assert [attack.tries for attack in parse_attacks("pgd:1, white:7")[1:]] == [7]


@dataclass(frozen=True)
class Diagonals(Ablation):
    """Ablation n keeps the pixels of row r and column c with (r + c) mod `number` = n."""

    number: int

    def count(self, height: int, width: int) -> int:
        return self.number

    def masks(self, height: int, width: int, index=None):
        index = torch.arange(self.number) if index is None else index
        of_pixel = (torch.arange(height)[:, None] + torch.arange(width)) % self.number
        return of_pixel.to(index.device) == index[..., None, None]

    def __str__(self) -> str:
        return f"diagonals:{self.number}"


def read_diagonals(text: str) -> Diagonals | None:
    match = re.fullmatch(r"diagonals:(\d{1,3})", text)
    return None if match is None else Diagonals(int(match[1]))


@pytest.fixture
def diagonals():
    READERS.append(read_diagonals)
    yield
    READERS.remove(read_diagonals)


@pytest.mark.usefixtures("diagonals")
def test_an_ablation(tmp_path):
    """By its text; nothing but count and masks is written, and the evaluator certifies and attacks with it."""
    ablation = parse_ablation("diagonals:5")
    assert (ablation, str(ablation)) == (Diagonals(5), "diagonals:5")
    assert parse_ablation("columns:2 + diagonals:5").count(4, 8) == 8 + 5
    model = smoothed(Level(3), ablation, 3)
    for patch, certified in ((PatchThreat(1, 2), True), (PatchThreat(2, 2), False)):  # touching two of five, or three
        found = records_of(model, scene(4, 8), patch, "pgd:2", tmp_path / str(patch))
        assert any(record.certified_exact for record in found) == certified
        assert any(one.broken for record in found for one in record.attacks) != certified
        assert not any(record.certified_exact and one.broken for record in found for one in record.attacks)


@pytest.mark.parametrize("patch", ["1x1", "2x1", "2x3", "2*1x1", "cross:3/1"])
@pytest.mark.usefixtures("diagonals")
def test_the_geometry_of_an_ablation(patch):
    """What a patch touches follows from the masks, and certificates are those of counting by hand."""
    size, threat = (3, 4), parse_threat(patch)
    ablation = parse_ablation("diagonals:5")
    kept = [{(r, c) for r, c in product(*map(range, size)) if (r + c) % 5 == n} for n in range(5)]
    assert [set(map(tuple, mask.nonzero().tolist())) for mask in ablation.masks(*size)] == kept
    footprints = threat.family(*size).footprint(torch.arange(len(threat.placements(*size))))
    covered = [set(map(tuple, mask.nonzero().tolist())) for mask in footprints]
    single = [frozenset(n for n in range(5) if kept[n] & some) for some in covered]
    unions = oracles.unions(single, threat.count)
    assert ablation.affected(threat, *size) == min(5, threat.count * max(map(len, single)))
    model, x = smoothed(Level(3), ablation, 3), images(24, size)
    x[::2] = (x[::2] > 0.8).float()
    certificate, cast = model.certify(x, threat), model.votes(x).cast.int().tolist()
    truth = [min(oracles.worst_lead(rows, touched) for touched in unions) for rows in cast]
    assert all(mine <= most for mine, most in zip(certificate.margin.tolist(), truth, strict=True))
    if threat.count == 1:
        assert certificate.margin.tolist() == truth


@dataclass(frozen=True)
class Angle(Stamp):
    """An L of two bars, one pixel thick, of `side` pixels each. Text: "angle:3"."""

    shape: ClassVar[str] = "angle"

    side: int
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Angle | None:
        match = re.fullmatch(r"angle:(\d{1,3})", text)
        return None if match is None else cls(int(match[1]))

    @property
    def pattern(self):
        at = torch.arange(self.side)
        return (at[None] == 0) | (at[:, None] == self.side - 1)

    @property
    def text(self) -> str:
        return f"angle:{self.side}"


@pytest.fixture
def angles():
    SHAPES.append(Angle)
    yield
    SHAPES.remove(Angle)


@pytest.mark.parametrize(
    "text", ["angle:3", "2*angle:2", "angle:3 & 2x2", "angle:2,angle:3", "angle:3@90", "2*angle:2@0,180", "3x1,angle:2"]
)
@pytest.mark.usefixtures("angles")
def test_the_texts_of_a_shape(text):
    """Alone, counted, beside others, turned, one of several: text and dict name it, and are inverse."""
    threat = parse_threat(text)
    assert parse_threat(str(threat)) == threat
    assert threat_from_dict(json.loads(json.dumps(threat.to_dict()))) == threat
    assert threat.on(5, 6) == parse_threat(text, (5, 6))


@pytest.mark.usefixtures("angles")
def test_a_shape(tmp_path):
    """Its certificates are those of its own pixels, attacks stay on them, and records name it."""
    size, threat = (4, 6), parse_threat("angle:2")
    model, shown = smoothed(Level(3), Columns(1), 3), scene(*size)
    found = records_of(model, shown, threat, "pgd:2,sparse-rs:200", tmp_path)
    assert found == read_records(tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["threat"] == "angle:2"
    assert any(one.broken for record in found for one in record.attacks)
    assert not any(record.certified_exact and one.broken for record in found for one in record.attacks)
    columns = [frozenset({c, c + 1}) for c in range(5)] * 3
    for record, rows in zip(found, model.votes(shown.batch(range(NUMBER))[0]).cast.int().tolist(), strict=True):
        assert record.margin_exact == min(oracles.worst_lead(rows, touched) for touched in columns)

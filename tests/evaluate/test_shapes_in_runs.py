"""Runs against patches of any shape: what is recorded, whose run it is, and a report that needs none of the files."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from evaluate.report import page, read_report
from evaluate.report.write import write_report
from evaluate.runs.counterexample import Counterexample, load_counterexample, save_counterexample
from evaluate.runs.gallery import exhibits_name, read_exhibits
from evaluate.runs.records import read_records
from evaluate.runs.threat_maps import COVERED, NO_PLACE, threat_drawn
from robustpatch.ablations.kinds import Columns
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats import Disc, Footprints, Mask, PatchThreat, Within, parse_threat
from tests.attacks.toys import Level, smoothed
from tests.evaluate import small_runs


def picture(path, pixels: list[tuple[int, int]]) -> None:
    """White at these places (row, column) of a black image of 4×8."""
    values = np.zeros((4, 8), np.uint8)
    for at in pixels:
        values[at] = 255
    Image.fromarray(values).save(path)


HALF = torch.arange(8).expand(4, 8) >= 3
SETS = torch.zeros(3, 4, 8, dtype=torch.bool)
SETS[0, 0, :2] = SETS[1, :, 5] = SETS[2, 1:3, 6:] = True


@pytest.mark.parametrize("threat", [Disc(3), Within.of(Disc(2), HALF), Footprints.of(SETS)], ids=str)
def test_attacked_held_and_shown(threat, tmp_path):
    """Certified images are attacked within the shape, and the gallery shows what lies in each patch's box."""
    records = small_runs.run(tmp_path, threat=threat, gallery=6)
    certified = [record for record in records if record.certified]
    assert certified
    assert len(certified) < len(records)
    for record in records:
        for attack in record.attacks:
            assert attack.contained
            assert attack.threat == str(threat)
            assert not (record.certified and attack.broken)
    store = Store.of(tmp_path)
    for name in store.names("records", ".parquet"):
        for one in read_exhibits(store.read(exhibits_name(name)), name) if store.exists(exhibits_name(name)) else []:
            assert one.attacked is None or one.attacked.patches.shape[2:] == (threat.height, threat.width)


CORNERS = torch.arange(8).expand(4, 8) + 2 * torch.arange(4)[:, None] >= 5


@pytest.mark.parametrize(
    "threat",
    [Disc(3), Within.of(Disc(2), CORNERS), Footprints.of(SETS), parse_threat("1x3@0,90"), PatchThreat(2, 2)],
    ids=str,
)
def test_the_gallery_draws_what_the_footprints_say(threat, tmp_path):
    """Against loops over all footprints: the pixels that a patch reaches, one placement of it, the pixels under the
    patches that were tried, and in the map, the least margin of the placements in each cell.
    """
    small_runs.run(tmp_path, threat=threat, gallery=6)
    model, (x, _) = smoothed(Level(3), Columns(1), 3), small_runs.scene().batch(range(small_runs.NUMBER))
    margins_of, shown = model.certify(x, threat).placement_margin, 0
    assert margins_of is not None
    store = Store.of(tmp_path)
    for name in store.names("records", ".parquet"):
        for one in read_exhibits(store.read(exhibits_name(name)), name) if store.exists(exhibits_name(name)) else []:
            first = 0
            for drawn, alternative in zip(one.drawn, threat.threats, strict=True):
                family = alternative.family(4, 8)
                every = [family.footprint(torch.tensor([i]))[0].numpy() for i in range(len(family))]
                assert np.array_equal(drawn > 0, np.any(every, axis=0))
                assert any(np.array_equal(drawn == COVERED, footprint) for footprint in every)
                cells: dict[tuple[int, int], list[int]] = {}
                for corner, margin in zip(
                    family.corners(family.anchors).tolist(),
                    margins_of[one.index, first : first + len(every)].tolist(),
                    strict=True,
                ):
                    cells.setdefault(tuple(corner), []).append(margin)
                first += len(every)
                wanted = np.full((4 - alternative.height + 1, 8 - alternative.width + 1), NO_PLACE)
                for corner, margins in cells.items():
                    wanted[corner] = min(margins)
                assert any(np.array_equal(own.margins, wanted) and own.placements == len(every) for own in one.maps)
                if one.attacked is not None and one.attacked.covered is not None:
                    shown += any(np.array_equal(one.attacked.covered > 0, footprint) for footprint in every)
    assert shown > 0 or isinstance(threat, PatchThreat) or len(threat.threats) > 1
    report = read_report(tmp_path)
    assert report.threat is not None
    assert len(report.threat.pictures) == len(threat.threats)
    assert '<h2 id="threat">' in page(report)
    open_places = [(card.maps[0].open, card.maps[0].placements) for card in report.cards if len(card.maps) == 1]
    assert all(number == len(threat.threats[0].family(4, 8)) for _, number in open_places)


def test_two_patches_are_drawn_side_by_side():
    """Each of them inside the image, at a place of its own."""
    drawn = threat_drawn(PatchThreat(2, 2, 2), 6, 12)
    assert int((drawn == COVERED).sum()) == 8
    assert (drawn > 0).all()


def test_an_exhibit_without_a_drawing_is_read(tmp_path):
    """Runs of versions that drew no threat are reported without."""
    small_runs.run(tmp_path, threat=Disc(3), gallery=6)
    store = Store.of(tmp_path)
    name = next(iter(store.names("exhibits", ".npz")))
    exhibits = read_exhibits(store.read(name), name)
    with np.load(tmp_path / name) as held:
        arrays = {key: held[key] for key in held.files}
    notes = json.loads(arrays.pop("notes").tobytes())
    for note in notes:
        del note["drawn"]
        if note["attacked"] is not None:
            del note["attacked"]["covered"]
        for own in note["maps"]:
            del own["placements"]
    content = BytesIO()
    np.savez_compressed(content, notes=np.frombuffer(json.dumps(notes).encode(), np.uint8), **arrays)
    old = read_exhibits(content.getvalue(), name)
    assert [one.index for one in old] == [one.index for one in exhibits]
    assert all(one.drawn == [] for one in old)


def test_a_file_of_another_content_is_another_run(tmp_path):
    """The text of a threat names a file: two runs of one text differ where the pixels do."""
    picture(tmp_path / "a.png", [(0, 0), (0, 1)])
    text = f"mask:{tmp_path}/a.png"
    first = small_runs.run(tmp_path / "run", threat=parse_threat(text))
    again = small_runs.run(tmp_path / "run", threat=parse_threat(text))
    assert small_runs.timeless(again) == small_runs.timeless(first)
    picture(tmp_path / "a.png", [(0, 0), (0, 1), (1, 0)])
    with pytest.raises(InvalidInput, match="another run \\(other threat_sha256\\)"):
        small_runs.run(tmp_path / "run", threat=parse_threat(text))


def test_a_report_reads_none_of_the_files(tmp_path):
    """A run against a region is reported where its picture is gone."""
    picture(tmp_path / "region.png", [(r, c) for r in range(4) for c in range(3, 8)])
    small_runs.run(tmp_path / "run", threat=parse_threat(f"2x2 in {tmp_path}/region.png"), gallery=6)
    (tmp_path / "region.png").unlink()
    write_report(tmp_path / "run", tmp_path / "run")
    assert "region.png" in (tmp_path / "run" / "report.md").read_text()
    assert len(read_records(tmp_path / "run")) == small_runs.NUMBER


def test_texts_out_of_files_name_no_file(tmp_path):
    """A checkpoint's defense, or a page's text, opens nothing."""
    picture(tmp_path / "a.png", [(0, 0)])
    for text in (f"mask:{tmp_path}/a.png", f"2x2 in {tmp_path}/a.png", "footprints:/dev/zero"):
        with pytest.raises(InvalidInput, match="names the file"):
            parse_threat(text, files=False)
    with pytest.raises(InvalidInput, match="names the file"):
        parse_defense("patchcleanser:patch=mask:/dev/zero").wrap(torch.nn.Flatten(), num_classes=2).eval().predict(
            torch.zeros(1, 1, 4, 8)
        )


@pytest.mark.parametrize("threat", [Within.of(Disc(2), HALF), Footprints.of(SETS), Mask.of(SETS[2]), Disc(3)], ids=str)
def test_packed_pixels_are_texts_too(threat, tmp_path):
    """`str` and `parse_threat` are inverse without any file, and a counterexample keeps the threat whole."""
    assert parse_threat(str(threat), files=False) == threat
    x = torch.rand(1, 4, 8)
    one = Counterexample(x, x, threat.placements(4, 8)[:1], 0, 1, "pgd", threat, {}, 1)
    name = save_counterexample(Store.of(tmp_path), smoothed(Level(3), Columns(1), 3), one)
    assert load_counterexample(tmp_path / name).threat == threat


@pytest.mark.parametrize("text", ["mask:{}/a.png", "1x1 in {}/a.png"])
def test_a_counterexample_lies_where_it_is_listed(text, tmp_path):
    """Whatever file a threat's text names: one level below the run, under a name that any file system takes."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    picture(tmp_path / "deep" / "er" / "a.png", [(0, 0), (0, 1)])
    threat = parse_threat(text.format(tmp_path / "deep" / ".." / "deep" / "er"))
    x = torch.rand(1, 4, 8)
    one = Counterexample(x, x, threat.threats[0].placements(4, 8)[:1], 0, 1, "pgd", threat.threats[0], {}, 1)
    name = save_counterexample(Store.of(tmp_path / "run"), smoothed(Level(3), Columns(1), 3), one)
    assert name in Store.of(tmp_path / "run").names("counterexamples", ".safetensors")
    assert len(name.split("/")) == 2
    assert load_counterexample(tmp_path / "run" / name).threat == threat

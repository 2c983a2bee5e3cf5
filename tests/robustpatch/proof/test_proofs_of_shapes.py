"""Proofs against patches of any shape: what is written, what is said of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import robustpatch
from robustpatch.ablations import base
from robustpatch.ablations.parse import parse_ablation
from robustpatch.ablations.shapes import ShiftedTouched
from robustpatch.certificates.exact import Certificate, certify_votes
from robustpatch.errors import InvalidInput
from robustpatch.proof import file
from robustpatch.proof import verifier as proof
from robustpatch.threats import Threat
from robustpatch.threats.base import Placements
from robustpatch.threats.stamp import Translations
from robustpatch.threats.within import Allowed
from robustpatch.voting.votes import Votes
from tests.robustpatch.proof.test_verifier import certificate
from tests.shapes import Corner

SIZE = (6, 8)


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> None:
    """sticker.png, a T of white pixels; region.png, where the upper rows are white; places.npz, two sets."""
    monkeypatch.chdir(tmp_path)
    sticker, region, sets = np.zeros((3, 3), bool), np.zeros(SIZE, bool), np.zeros((2, *SIZE), bool)
    sticker[0], sticker[:, 1], region[:4], sets[0, 2, 3:6], sets[1, 5, ::3] = True, True, True, True, True
    for name, pixels in (("sticker", sticker), ("region", region)):
        Image.fromarray(pixels.astype(np.uint8) * 255).save(f"{name}.png")
    np.savez("places.npz", masks=sets)


SHAPES = {
    "disc:5": "shape 1 (21 pixels within 5x5, at 8 places)",
    "mask:sticker.png": "shape 1 (5 pixels within 3x3, at 24 places)",
    "mask:sticker.png@0,90": (
        "shape 1 (5 pixels within 3x3, at 24 places) or shape 2 (5 pixels within 3x3, at 24 places)"
    ),
    "2x2 in region.png": "shape 1 (4 pixels within 2x2, at 21 places)",
    "1x2,disc:3": "1x2 or shape 1 (9 pixels within 3x3, at 24 places)",
    "footprints:places.npz": "shape 1 (one of 2 sets of 3 to 3 pixels within 1x7, at 2 places)",
    "2*disc:2": "2*shape 1 (4 pixels within 2x2, at 35 places)",
    "disc:3 & 1x1": "shape 1 (9 pixels within 3x3, at 24 places) & shape 2 (1 pixels within 1x1, at 48 places)",
    "1x3@0,45": "1x3 or shape 1 (3 pixels within 3x3, at 24 places)",
}


@pytest.mark.parametrize("threat", SHAPES)
@pytest.mark.parametrize("text", ["columns:1", "blocks:2", "rows:2+columns:1"])
def test_what_is_saved_verifies_and_names_no_file(pictures, threat, text, capsys):
    """By every option's text; the reader is told the pixels and the places, for the file holds no names."""
    certificate(text, threat, SIZE).save("proof.npz")
    assert proof.main(["verify", "proof.npz"]) == 0
    assert f"certified against {SHAPES[threat]}, by the votes" in capsys.readouterr().out
    with np.load("proof.npz") as saved:
        claim = saved["claim"].tobytes().decode()
    assert not any(name in claim for name in ("png", "npz", "mask", "disc"))


def test_a_shape_is_drawn_for_the_reader(pictures, capsys):
    certificate("columns:1", "mask:sticker.png", SIZE).save("proof.npz")
    proof.main(["verify", "proof.npz"])
    assert capsys.readouterr().out.splitlines()[2:] == [
        "shape 1:",
        "  ###",
        "  .#.",
        "  .#.",
        "every claim follows from the votes",
    ]


def test_a_shape_that_says_nothing_but_its_footprints(tmp_path):
    """One of somebody else's: `anchors` and `footprint` alone."""
    made = certificate("columns:1", "1x1", SIZE)
    assert made.evidence is not None
    made.evidence.certify(Corner(2)).save(tmp_path / "proof.npz")
    assert proof.verify(tmp_path / "proof.npz") == []
    assert "2*shape 1 (3 pixels within 2x2, at 35 places)" in proof.told(proof.read(tmp_path / "proof.npz"))


def test_rectangles_are_written_as_before(tmp_path):
    """The same seven arrays, and a claim that says height, width and count, for all that was a rectangle before."""
    certificate("columns:2", "2*1x2,3x1", (3, 9)).save(tmp_path / "proof.npz")
    with np.load(tmp_path / "proof.npz") as saved:
        assert saved.files == ["cast", "close", "shape", "prediction", "certified", "margin", "claim"]
        claim = saved["claim"].tobytes().decode()
    assert claim == json.dumps(
        {
            "unit": 1,
            "slack": 0,
            "ablation": "columns:2",
            "image_size": [3, 9],
            "threats": [[1, 2, 2], [3, 1, 1]],
            "method": "exact",
            "guard": 1e-4,
        }
    )


def contested(text: str, threat: Threat, size: tuple[int, int]) -> Certificate:
    """Of image i the ablations from the i-th on vote for class 0, the others for none: in one the worst place is the
    last, in another every ablation of the worst place counts.
    """
    n = parse_ablation(text).count(*size)
    cast = torch.zeros(n, n, 2, dtype=torch.bool)
    cast[:, :, 0] = torch.arange(n) >= torch.arange(n)[:, None]
    return certify_votes(Votes(cast, cast & False), parse_ablation(text), threat, size)


def one_pixel_less(monkeypatch) -> None:
    whole = Translations.hits

    def hits(self, masks):
        less = self.pattern.clone()
        less[0, less[0].nonzero()[0, 0]] = False
        return whole(Translations(less, self.size), masks)

    monkeypatch.setattr(Translations, "hits", hits)


def one_run_less(monkeypatch) -> None:
    whole = ShiftedTouched._touched_at
    monkeypatch.setattr(ShiftedTouched, "_touched_at", lambda self, p, d, a: whole(self, p & (p.cumsum(0) > 1), d, a))


def one_place_less(monkeypatch) -> None:
    """The place at which the patch lies farthest to the lower right is forgotten by the certificate."""
    whole = base.SomeTouched
    monkeypatch.setattr(base, "SomeTouched", lambda touched, kept: whole(touched, kept[:-1]))


@pytest.mark.parametrize(
    ("broken", "text", "threat", "size"),
    [
        (one_pixel_less, "blocks:1", "disc:5", (8, 8)),
        (one_pixel_less, "blocks:2", "cross:3/1", (6, 8)),
        (one_run_less, "blocks:1", "disc:5", (18, 18)),
        (one_place_less, "blocks:1", "disc:3 in 6x8/________", (6, 8)),
    ],
)
def test_a_broken_dilation_is_caught(broken, text, threat, size, tmp_path, monkeypatch):
    """The certificate forgets a pixel, or a place, of the footprint: the file's footprints are whole, and disagree."""
    threat = robustpatch.parse_threat(threat, size)
    contested(text, threat, size).save(tmp_path / "proof.npz")
    assert proof.verify(tmp_path / "proof.npz") == []
    broken(monkeypatch)
    contested(text, threat, size).save(tmp_path / "proof.npz")
    assert any("worst" in line for line in proof.verify(tmp_path / "proof.npz"))


@pytest.mark.parametrize(
    ("text", "threat", "size", "reason"),
    [
        ("blocks:3", "disc:4 & 3x3", (40, 40), "2 patches have more unions than are drawn: of 1369 and 1444 sets"),
        ("blocks:3", "2*5x5", (40, 40), "2 patches have more unions than are drawn: of 1296 sets"),
        ("blocks:3", "disc:5", (224, 224), "blocks:3 has too many masks of 224x224"),
    ],
)
def test_what_the_verifier_would_not_check_is_not_saved(text, threat, size, reason, tmp_path):
    """By name, before the file is written, with what to do instead."""
    votes = torch.zeros(1, parse_ablation(text).count(*size), 2, dtype=torch.bool)
    made = certify_votes(Votes(votes, votes), parse_ablation(text), robustpatch.parse_threat(threat, size), size)
    with pytest.raises(InvalidInput, match=rf"threat is {threat.replace('*', '.')}.*{reason}.*certify fewer patches"):
        made.save(tmp_path / "proof.npz")
    assert not list(Path(tmp_path).iterdir())


def test_a_claim_that_would_not_be_read_is_not_saved(tmp_path, monkeypatch):
    """As of a thousand alternatives of many patches each; here with a smaller limit."""
    monkeypatch.setattr(file, "_MOST_CLAIM", 100)
    with pytest.raises(InvalidInput, match=r"no proof .*: the claim has .* at most 100 are read; name fewer"):
        certificate("columns:1", "disc:2,disc:3,disc:4", SIZE).save(tmp_path / "proof.npz")
    assert not list(Path(tmp_path).iterdir())


@pytest.mark.parametrize(
    ("of", "shape"), [(Translations, "disc:3"), (Allowed, "cross:3/1 in 6x8/________"), (None, "2x3 & disc:2")]
)
def test_quick_lists_of_footprints_are_what_the_footprints_say(of, shape):
    """`sets` of each family, against its definition by `footprint`."""
    for family in set(robustpatch.parse_threat(shape, SIZE).threats[0].families(*SIZE)):
        assert of is None or isinstance(family, of)
        (sets, where), (slow, slowly) = family.sets(), Placements.sets(family)
        assert torch.equal(where, slowly)
        assert all(torch.equal(a, b) for a, b in zip(sets, slow, strict=True))

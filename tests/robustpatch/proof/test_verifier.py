"""A certificate on disk: what is saved verifies, what is tampered with does not, and no torch is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import robustpatch
from robustpatch.ablations.parse import parse_ablation
from robustpatch.certificates.exact import Certificate, certify_votes
from robustpatch.errors import InvalidInput
from robustpatch.proof import verifier as proof
from robustpatch.proof.footprints import Rectangle
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.votes import UNITS, Scored, Votes
from tests import oracles

CASES = [
    ("columns:2", "1x2", (3, 9)),
    ("columns:3/2", "2x1", (3, 9)),
    ("rows:2", "2x3", (9, 3)),
    ("rows:3/3", "1x1", (8, 2)),
    ("blocks:2", "1x1", (4, 5)),
    ("blocks:2x3/2", "2x1", (5, 6)),
    ("columns:1", "2*1x1", (2, 9)),
    ("blocks:1", "2*1x1", (3, 4)),
    ("columns:2", "1x2,2x1", (3, 9)),
    ("rows:1", "2*1x1,2x2", (9, 3)),
    ("2*grid-columns:2", "1x2", (3, 9)),
    ("2*grid-blocks:2", "2x1", (5, 6)),
    ("1*grid-blocks:2", "2*1x1", (5, 6)),
    ("columns:2+rows:1", "2x1,1x2", (4, 6)),
    ("rows:2+columns:1", "2*1x1", (5, 6)),
]


def certificate(text: str, threat: str, size: tuple[int, int], method: str = "exact") -> Certificate:
    """Eight images, from contested to unanimous, some votes close."""
    ablation = parse_ablation(text)
    generator = torch.Generator().manual_seed(0)
    share = torch.tensor([0.5, 0.3, 0.1]) + torch.linspace(0, 0.5, 8)[:, None] * torch.tensor([1.0, -0.5, -0.2])
    shape = (8, ablation.count(*size), 3)
    cast = torch.rand(shape, generator=generator) < share[:, None]
    votes = Votes(cast, torch.rand(shape, generator=generator) < 0.02)
    threats = robustpatch.parse_threat(threat, size)
    return certify_votes(votes, ablation, threats, size, method=method, guard=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["exact", "margin"])
@pytest.mark.parametrize(("text", "threat", "size"), CASES)
def test_what_is_saved_verifies(tmp_path, text, threat, size, method):
    """All kinds, strides, several patches, alternatives: the verifier agrees with the certificate."""
    made = certificate(text, threat, size, method)
    made.save(tmp_path / "proof.npz")
    assert proof.verify(tmp_path / "proof.npz") == []
    assert proof.main(["verify", str(tmp_path / "proof.npz")]) == 0


@pytest.mark.parametrize(("text", "threat", "size"), CASES)
def test_the_verifier_draws_the_masks_of_the_oracle(text, threat, size):
    """Its masks and its touched sets, pixel by pixel."""
    masks = proof.masks(text, *size)
    assert [{(int(r), int(c)) for r, c in np.argwhere(mask)} for mask in masks] == oracles.kept(text, *size)
    for one in robustpatch.parse_threat(threat, size).threats:
        sets = proof.touched_sets(masks, ((Rectangle(one.height, one.width), 1),))
        found = {frozenset(np.nonzero(row)[0].tolist()) for row in sets}
        assert found == set(oracles.touched(text, (one.height, one.width), size))


def tampered(path: Path, **changes) -> int:
    """The verifier's exit status after some arrays, or entries of the claim, are replaced."""
    with np.load(path) as file:
        arrays = dict(file)
    claim = json.loads(arrays["claim"].tobytes())
    for name, change in changes.items():
        if name in claim:
            claim[name] = change
        else:
            arrays[name] = change(arrays[name].copy())
    arrays["claim"] = np.frombuffer(json.dumps(claim).encode(), np.uint8)
    other = path.with_name("tampered.npz")
    np.savez(other, **arrays)
    return proof.main(["verify", str(other)])


@pytest.fixture
def saved(tmp_path) -> Path:
    made = certificate("columns:2", "1x2", (3, 12))
    assert 0 < int(made.certified.sum()) < 8
    made.save(tmp_path / "proof.npz")
    return tmp_path / "proof.npz"


def turned(array: np.ndarray, i: int, value) -> np.ndarray:
    array[i] = value
    return array


@pytest.mark.parametrize(
    "forged",
    [
        {"unit": 0, "slack": 0},
        {"unit": -5, "slack": 0},
        {"unit": 0.5, "slack": 0},
        {"unit": 2**17},
        {"slack": -65536, "guard": -1},
        {"slack": -65536, "guard": float("nan")},
        {"slack": float("nan")},
        {"unit": 1, "slack": 7},
        {"slack": 6},
    ],
)
def test_no_unit_or_slack_makes_a_claim_cheaper(tmp_path, forged):
    """4 of 6 against 2 do not stand against a patch that touches 3, whatever one ablation is said to add at most."""
    cast = torch.zeros(1, 6, 2, dtype=torch.int32)
    cast[0, :4, 0] = cast[0, 4:, 1] = UNITS
    made = certify_votes(Scored(cast, 7), parse_ablation("columns:1"), PatchThreat(1, 3), (1, 6), guard=1e-4)
    made.save(tmp_path / "proof.npz")
    lies = {"certified": lambda a: ~a, "margin": lambda a: a * 0}
    assert tampered(tmp_path / "proof.npz") == 0
    assert tampered(tmp_path / "proof.npz", **lies) == 1
    assert tampered(tmp_path / "proof.npz", **forged) == tampered(tmp_path / "proof.npz", **lies, **forged)
    assert tampered(tmp_path / "proof.npz", **forged) == (1 if forged == {"slack": 6} else 2)


@pytest.mark.parametrize("prediction", [1, 2, -1])
def test_a_prediction_is_checked_even_where_nothing_is_certified(tmp_path, prediction):
    """Three classes tie; only the first is the prediction, however little is claimed about another."""
    votes = Votes(torch.ones(1, 9, 3, dtype=torch.bool), torch.zeros(1, 9, 3, dtype=torch.bool))
    certify_votes(votes, parse_ablation("columns:2"), PatchThreat(1, 1), (3, 9)).save(tmp_path / "proof.npz")
    modest = {"margin": lambda a: a - 100}
    assert tampered(tmp_path / "proof.npz", **modest) == 0
    assert tampered(tmp_path / "proof.npz", prediction=lambda a: turned(a, 0, prediction), **modest) == 1


def test_what_cannot_be_read_is_no_proof(saved, tmp_path, capsys):
    """Exit status 2: garbage, a missing file, a truncated one, more choices than are drawn; and a wrong call."""
    (tmp_path / "garbage").write_bytes(b"not a proof")
    (tmp_path / "short").write_bytes(saved.read_bytes()[:-40])
    for name in ("garbage", "short", "missing"):
        assert proof.main(["verify", str(tmp_path / name)]) == 2
    assert tampered(saved) == 0
    assert tampered(saved, ablation="30*grid-columns:1", image_size=[3, 60]) == 2
    assert tampered(saved, shape=lambda a: a[:2]) == 2
    assert proof.main([]) == proof.main(["verify"]) == proof.main(["check", str(saved)]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_certificate_without_votes_cannot_be_saved(tmp_path):
    """The message says what to do."""
    made = certificate("columns:2", "1x2", (3, 9))
    bare = Certificate(made.prediction, made.certified, made.margin, None, made.threat, "exact", 0.0, made.close)
    with pytest.raises(InvalidInput, match="certify again"):
        bare.save(tmp_path / "proof.npz")


def test_verification_needs_no_torch(saved):
    """`python -m robustpatch.proof` with torch and jaxtyping unimportable: the same verdicts."""
    code = (
        "import sys, runpy\nfor name in ('torch', 'jaxtyping', 'scipy'): sys.modules[name] = None\n"
        "runpy.run_module('robustpatch.proof', run_name='__main__')"
    )
    root = Path(robustpatch.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, "verify", str(saved)], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "every claim follows from the votes"), done.stderr


def test_what_is_claimed_is_said(tmp_path, capsys):
    """A proof against a smaller patch, or with a larger guard, is no proof of what was asked: the reader must see."""
    for threat, named in (("2x1", "2x1"), ("2*1x2,3x1", "2*1x2 or 3x1")):
        made = certificate("columns:2", threat, (3, 12))
        made.save(tmp_path / "proof.npz")
        proof.main(["verify", str(tmp_path / "proof.npz")])
        some = int(made.certified.sum())
        close = int(made.close.sum())
        assert capsys.readouterr().out.splitlines() == [
            f"claim: of 8 images of 3x12 under columns:2, {some} certified against {named}, by the votes of 12 "
            "ablations for 3 classes",
            "assumed, which the file cannot show: a model casts these votes on the images; no score of an untouched "
            f"ablation moves by more than 0.0001, which turns no vote over but the {close} of 288 marked close",
            "every claim follows from the votes",
        ]


def told_of(votes: Votes | Scored, guard: float, path: Path, capsys) -> str:
    certify_votes(votes, parse_ablation("columns:1"), PatchThreat(1, 1), (2, 4), guard=guard).save(path)
    assert proof.main(["verify", str(path)]) == 0
    return capsys.readouterr().out.splitlines()[1].partition("on the images; ")[2]


def test_what_the_file_cannot_show_is_said(tmp_path, capsys):
    """A guard is the writer's word: most of all where no vote is marked close."""
    cast, none = torch.ones(1, 4, 2, dtype=torch.bool), torch.zeros(1, 4, 2, dtype=torch.bool)
    one = none.clone()
    one[0, 0, 0] = True
    path = tmp_path / "proof.npz"
    assert told_of(Votes(cast, none), 0.99, path, capsys) == (
        "no score of an untouched ablation moves by more than 0.99, which turns no vote over (none of 8 is marked "
        "close: the guard cannot be checked)"
    )
    assert "but the 1 of 8 marked close" in told_of(Votes(cast, one), 0.99, path, capsys)
    assert told_of(Votes(cast, none), 0.0, path, capsys) == (
        "no vote of an untouched ablation changes but the 0 of 8 marked close"
    )
    assert told_of(Scored(cast.int(), 655), 0.00999, path, capsys) == (
        "no score of an untouched ablation moves by more than 0.00999 (655 of 65536 units are allowed for)"
    )


def test_shapes_are_part_of_the_claim(tmp_path, capsys):
    """[2,2] broadcasts against [2] and counts twice; one class leaves no rival. (Found by an adversary.)"""
    cast = torch.zeros(2, 8, 2, dtype=torch.bool)
    cast[0, :, 0] = cast[1, :4, 0] = cast[1, 4:, 1] = True  # image 1: a tie of 4 and 4
    path = tmp_path / "proof.npz"
    certify_votes(Votes(cast, ~cast & False), parse_ablation("columns:1"), PatchThreat(1, 1), (1, 8)).save(path)
    assert tampered(path) == 0
    twice = np.array([[True, False], [True, False]])
    assert tampered(path, certified=lambda a: twice) == 2
    assert tampered(path, certified=lambda a: np.ones((2, 1000), bool), margin=lambda a: a * 0 + 6) == 2
    alone = np.packbits(np.ones((2, 8, 1), bool))
    changes = {"cast": lambda a: alone, "close": lambda a: alone * 0, "shape": lambda a: np.array([2, 8, 1])}
    assert tampered(path, **changes, certified=lambda a: a | True, margin=lambda a: a * 0 + 6) == 2
    assert "two classes or more" in capsys.readouterr().err


def test_a_certificate_of_no_image_cannot_be_saved(tmp_path):
    none = torch.zeros(0, 9, 3, dtype=torch.bool)
    made = certify_votes(Votes(none, none), parse_ablation("columns:2"), PatchThreat(1, 1), (3, 9))
    with pytest.raises(InvalidInput, match="of 0 images"):
        made.save(tmp_path / "proof.npz")

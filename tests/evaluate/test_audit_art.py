"""ART's derandomized smoothing under audit: its published tie-break bug and its others, through the factory."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluate.audit import audit, replay
from evaluate.audit.art import (
    ARTCertifier,
    art_factory,
    levine_block,
    levine_column,
    levine_probabilities,
    levine_row,
    salman_column,
)
from evaluate.audit.dictated_base import DictatedBase
from evaluate.audit.harness import Harness, view_findings
from evaluate.audit.plans import Plan
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import images
from tests.evaluate.audits import dictated
from tests.toys import seeded


def found(factory, shape, threat, budget=1_000):
    return {finding.check: finding for finding in dictated(Harness(factory, 4, shape), threat, budget)[0]}


def views(factory, shape, threat):
    """The checks of what the views alone show, without any votes."""
    return {finding.check for finding in view_findings(Harness(factory, 4, shape), threat)}


def test_the_published_tie_break():
    """Of ten, twenty and ten votes in forty, ART compares with the ten that lose ties: [10, 20, 10, 0] is certified
    against 5x5, and flipped. Nothing else is wrong with its columns on square patches."""
    findings = found(levine_column, (1, 5, 40), PatchThreat(5, 5), 4_000)
    assert set(findings) == {"tie among rivals"}
    votes = findings["tie among rivals"].sentence.split(", were certified")[0]
    assert sorted(map(int, re.findall(r"by (\d+)", votes))) == [10, 10, 20]
    ablator = levine_column(DictatedBase(4), 4, (1, 5, 40)).classifier.ablator
    told = ablator.certify(torch.tensor([[10, 20, 10, 0]]), size_to_certify=5, label=torch.tensor([1]))
    assert (bool(told[0]), int(told[2])) == (True, 1)  # our rule does not certify it


@pytest.mark.slow
def test_blocks_have_it_too():
    assert "tie among rivals" in found(levine_block, (1, 6, 8), PatchThreat(1, 1), 2_000)


def test_the_ablation_in_place():
    """On the CPU salman2021 overwrites the image, so that its certificates are of other views than its predictions."""
    pytest.importorskip("timm")
    findings = found(salman_column, (1, 2, 12), PatchThreat(1, 1))
    assert "views" in findings
    assert any(finding.severity == "broken certificate" for finding in findings.values())


def test_rows_of_an_image_that_is_not_square():
    """`eval_and_certify` counts as many rows as there are columns."""
    assert "agreement" in found(levine_row, (1, 6, 13), PatchThreat(1, 1))
    assert "views" in views(levine_row, (1, 13, 6), PatchThreat(1, 1))


@pytest.mark.slow
def test_rows_of_a_square_image():
    assert not set(found(levine_row, (1, 13, 13), PatchThreat(2, 2))) - {"tie among rivals"}


def test_votes_that_are_added_as_booleans():
    """With `logits` off, `predict` adds booleans: whoever has a vote has one."""
    assert "counts" in found(levine_probabilities, (1, 2, 12), PatchThreat(1, 1))


def test_an_art_certifier_brings_its_factory(tmp_path, only_plans):
    """The whole audit of an object around a network of its own, with a file that shows it again."""
    only_plans(Plan((1, 3, 13), (PatchThreat(2, 2),)))
    base = seeded(lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 3 * 13, 4))).eval()
    certifier = levine_column(base, 4, (1, 3, 13))
    x = images(2, (3, 13))
    done = audit(certifier, x=x, threat=PatchThreat(2, 2), images=2, budget=100, output=tmp_path)
    ties = [finding for finding in done.findings if finding.check == "tie among rivals"]
    assert ties
    assert replay(ties[0].path, certifier, certifier.with_base)
    assert {finding.check for finding in done.findings} == {"tie among rivals"}


def test_its_preprocessing_is_audited():
    """ART normalises before it ablates when it certifies, and after that when it predicts: of other views."""
    shape, threat = (1, 3, 13), PatchThreat(1, 1)
    given = ("levine2020", "column", 1)
    mended = art_factory(*given, preprocessing=(0.5, 0.25))
    assert "views" in views(mended, shape, threat)
    assert "views" not in views(levine_column, shape, threat)
    assert "views" not in views(art_factory(*given, "predict", preprocessing=(0.5, 0.25)), shape, threat)


def test_a_certifier_hands_its_preprocessing_to_the_factory():
    """The same views of the same image, whatever the base: range, normalisation and all."""
    given = art_factory("levine2020", "column", 1, clip_values=(-1.0, 3.0), preprocessing=(0.5, 0.25))
    x, shape = images(2, (2, 5)), (1, 2, 5)
    seen = []
    for make in (given, given(DictatedBase(4), 4, shape).with_base):
        base = DictatedBase(4)
        with base.recording() as shown:
            make(base, 4, shape).predict(x)
        seen.append(shown)
    assert seen[0] == seen[1]
    plain = DictatedBase(4)
    with plain.recording() as shown:
        levine_column(plain, 4, shape).predict(x)
    assert shown != seen[0]


def test_images_are_brought_to_its_range_and_its_axes():
    x = images(2, (2, 5))
    own = SimpleNamespace(nb_classes=3, channels_first=False, clip_values=(-1.0, 3.0))
    got = ARTCertifier(own).array(x)
    assert got.shape == (2, 2, 5, 1)
    assert np.allclose(got[..., 0], 4 * x[:, 0].numpy() - 1)
    assert ARTCertifier(own).with_base is None


def test_what_art_does_not_certify_is_refused():
    certifier = levine_column(torch.nn.Flatten(), 4, (1, 3, 4))
    with pytest.raises(InvalidInput, match="one square"):
        certifier.certify(images(1, (3, 4)), PatchThreat(1, 2))


def test_scores_that_are_no_numbers_are_no_prediction():
    """Of NaN beside a number torch names the former; ties go to the lower number, as ART has it."""
    given = np.array([[0.0, 2.0, 2.0], [1.0, 0.0, 1.0]])
    certifier = ARTCertifier(
        SimpleNamespace(nb_classes=3, channels_first=True, clip_values=None, predict=lambda x: given)
    )
    assert certifier.predict(images(2, (2, 2))).tolist() == [1, 0]
    given[1, 1] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        certifier.predict(images(2, (2, 2)))

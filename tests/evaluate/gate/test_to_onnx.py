"""A model converted to ONNX by a gate: the same predictions and certificates of what onnxruntime answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from evaluate.cli.program import app
from evaluate.gate.to_onnx import OnnxBase, onnx
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.intake.onnx_graph import OnnxNetwork
from robustpatch.threats import parse_threat
from tests import toys
from tests.robustpatch.intake import files

SIZE, THREAT = files.SIZE, parse_threat("1x1", files.SIZE)


def smoothed() -> SmoothedClassifier:
    ablation = Columns(2)
    return SmoothedClassifier(toys.strip(ablation, SIZE, 3), ablation, num_classes=3).eval()


def plain() -> SmoothedClassifier:
    return SmoothedClassifier(toys.linear(size=SIZE, classes=3), Columns(2), num_classes=3).eval()


def defended(text: str) -> nn.Module:
    return parse_defense(text).wrap(files.small(), num_classes=3).eval()


def test_the_graph_of_a_one_pass_base_gives_the_ablations_asked_for():
    """For all images alike, and for each image its own."""
    base, x = toys.strip(Columns(2), SIZE, 3), toys.images(size=SIZE)

    class Graph(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return base.score_all(x)

    exported = OnnxBase(Graph(), base.ablation).eval()
    with torch.no_grad():
        for index in (None, torch.tensor([5, 0]), torch.tensor([[1, 1], [2, 7], [0, 3]])):
            assert torch.allclose(exported.score_all(x, index), base.score_all(x, index), atol=1e-6)


@pytest.mark.parametrize("package", ["onnxscript", "onnxruntime"])
def test_what_is_not_installed_is_named(monkeypatch, package):
    monkeypatch.setattr("evaluate.gate.to_onnx.find_spec", lambda name: None if name == package else name)
    with pytest.raises(InvalidInput, match=rf"to is onnx, but {package} is not installed; pip install"):
        onnx(smoothed(), toys.images(2, size=SIZE))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        smoothed,
        plain,
        files.small,
        lambda: defended("patchcleanser:masks=3,patch=2x2"),
        lambda: defended("lgs:window=3,overlap=2"),
    ],
    ids=["one pass", "plain base", "undefended", "patchcleanser", "lgs"],
)
def test_answers_and_certificates_stay(make):
    """What the network says comes from onnxruntime; what is made of it is the same."""
    x, before = toys.images(20, size=SIZE), as_classifier(make())
    after = as_classifier(onnx(make(), x))
    assert any(isinstance(part, OnnxNetwork) for part in after.modules())
    assert torch.equal(before.predict(x), after.predict(x))
    if isinstance(before, CertifiedClassifier) and isinstance(after, CertifiedClassifier):
        ours, theirs = before.certify(x, THREAT), after.certify(x, THREAT)
        assert torch.equal(ours.certified, theirs.certified)
        assert (ours.margin is None and 0 < int(ours.certified.sum()) < len(x)) or torch.equal(
            ours.margin, theirs.margin
        )


@pytest.mark.slow
def test_networks_that_cannot_be_converted_are_refused():
    """One whose steps depend on pixels is not exported; of a graph no bounds are known."""

    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * (2 if float(x.sum()) > 0 else 1)

    with pytest.raises(InvalidInput, match=r"to is onnx, but PyTorch does not export Fickle \("):
        onnx(Fickle().eval(), toys.images(2, size=SIZE))
    converted = as_classifier(onnx(defended("ibp"), toys.images(2, size=SIZE)))
    assert isinstance(converted, CertifiedClassifier)
    with pytest.raises(InvalidInput, match="an ONNX graph shows PyTorch no layers"):
        converted.certify(toys.images(2, size=SIZE), THREAT)


@pytest.mark.slow
def test_the_gate(tmp_path):
    """It counts what the shipped columns lose: nothing of four images."""
    rules = tmp_path / "gate.toml"
    rules.write_text(f'[[convert]]\nto = "onnx"\n[run]\nnum_images = 4\nattacks = "none"\noutput = "{tmp_path}/run"\n')
    done = CliRunner().invoke(app, ["gate", str(rules)])
    assert done.exit_code == 0, done.output
    assert "pass  certificates in onnx: 0 of 3 lost (0.00%), 0 gained, 0 predictions changed" in done.stdout

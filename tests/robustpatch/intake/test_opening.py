"""The same network from every kind of file: its answers, gradients and certificates are PyTorch's."""

from __future__ import annotations

import copy
import pickle

import onnx
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from evaluate.model.own import OfArrays
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.defenses import parse_defense
from robustpatch.intake import Prepared, Preprocessing, look_at, open_model, overridden
from robustpatch.threats import parse_threat
from tests import toys
from tests.robustpatch.intake import files

KINDS = ("TorchScript", "export", "export of 3", "ONNX", "ONNX of 3", "ONNX without gradients", "NumPy")
CLEANSER = "patchcleanser:masks=2,patch=2x2"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Each kind's network, opened from its file."""
    folder, net = tmp_path_factory.mktemp("models"), files.small()
    files.write_script(net, folder / "net.pt")
    files.write_exported(net, folder / "net.pt2")
    files.write_exported(net, folder / "three.pt2", batch=3)
    for name, options in (("net", {}), ("three", {"batch": 3}), ("strange", {"strange": True})):
        onnx.save(files.graph(net, **options), folder / f"{name}.onnx")
    names = ("net.pt", "net.pt2", "three.pt2", "net.onnx", "three.onnx", "strange.onnx")
    found = {
        kind: open_model(str(folder / name), image_size=files.SIZE) for kind, name in zip(KINDS, names, strict=False)
    }
    return {**found, "NumPy": OfArrays(files.scores).eval()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "without" not in kind])
@pytest.mark.parametrize("defense", [CLEANSER, "lgs:window=3,overlap=1"])
def test_defended_as_in_pytorch(kind, defense, opened):
    """Certificates, predictions and how close they are, on 20 images."""
    x, threat = toys.images(20, size=files.SIZE), parse_threat("2x2", files.SIZE)
    ours, theirs = (
        as_classifier(parse_defense(defense).wrap(net, num_classes=files.CLASSES).eval())
        for net in (files.small(), opened[kind])
    )
    assert torch.equal(ours.predict(x), theirs.predict(x))
    if not ours.certifies:
        return
    one, other = ours.certify(x, threat), theirs.certify(x, threat)
    assert torch.equal(one.prediction, other.prediction)
    assert torch.equal(one.certified, other.certified)
    assert 0 < int(one.certified.sum()) < len(x)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind, opened):
    """Those of the network, wherever there are any."""
    x = toys.images(4, size=files.SIZE).requires_grad_()
    out = opened[kind](x)
    if kind in ("ONNX without gradients", "NumPy"):
        assert not out.requires_grad
        return
    (found,) = torch.autograd.grad(out[:, 1].sum(), x)
    (expected,) = torch.autograd.grad(files.small()(x)[:, 1].sum(), x)
    torch.testing.assert_close(found, expected)


def test_what_is_said_of_an_onnx_file_that_cannot_be_converted(tmp_path):
    """It is attacked as a black box, and the note says so and why."""
    onnx.save(files.graph(files.small(), strange=True), tmp_path / "strange.onnx")
    (note,) = look_at(str(tmp_path / "strange.onnx")).notes
    assert "has no gradients: onnx2torch does not convert it" in note
    assert "Hardmax" in note


@pytest.mark.parametrize("kind", ["export", "ONNX", "ONNX of 3"])
def test_copies_answer_alike(kind, opened):
    """A worker's copy, and one that an audit asks afresh; which is evaluation mode throughout."""
    x, net = toys.images(4, size=files.SIZE), opened[kind]
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(x), net(x))
    assert not any(part.training for part in net.modules())


def test_networks_of_libraries(tmp_path):
    """Named by the user, filled from safetensors or a state dict, preprocessed as the library says."""
    theirs = toys.seeded(lambda: timm.create_model("resnet10t", num_classes=4, in_chans=1)).eval()
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    found = look_at("timm:resnet10t", str(tmp_path / "timm.safetensors"))
    assert found.preprocessing.channels == 1
    assert found.preprocessing.size == (176, 176)
    assert found.preprocessing.mean == ()  # timm's are of three channels
    x = toys.images(2, size=(176, 176))
    assert torch.equal(found.build((176, 176))(x), theirs(x))
    vision = toys.seeded(lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=6)).eval()
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in vision.state_dict().items()}}, tmp_path / "tv.pt"
    )
    found = look_at("torchvision:shufflenet_v2_x0_5", str(tmp_path / "tv.pt"))
    assert found.preprocessing.framing.scaled == 256
    by = found.preprocessing
    x = toys.images(2, 3, (224, 224))
    normal = (x - torch.tensor(by.mean)[:, None, None]) / torch.tensor(by.std)[:, None, None]
    torch.testing.assert_close(found.build((224, 224))(x), vision(normal))


def test_preprocessing_is_part_of_the_model():
    """Scaled, shown in three channels, normalised; and what is given comes before the model's own."""
    own = Preprocessing(size=(8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0), scaled=9, source="its file")
    given = overridden(own, size=(4, 4), mean=(0.5,), std=(2.0,))
    assert (given.size, given.mean, given.scaled) == ((4, 4), (0.5,), None)
    assert str(given) == "seen as 4×4, mean 0.5, std 2 (--input-size, --mean, --std as given; else its file)"
    x = toys.images(2, size=(16, 16))
    seen = Prepared(nn.Identity(), own)(x)
    small = nn.functional.interpolate(x, (8, 8), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    expected = (small - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    torch.testing.assert_close(seen, expected)

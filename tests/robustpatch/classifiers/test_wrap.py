"""Any model as a base: what it computes of a wholly kept image stays what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from robustpatch import Columns, InvalidInput, PatchThreat, TopOne, wrap
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.checkpoints import load_checkpoint, model_from, save_checkpoint
from robustpatch.encoding import ComplementChannels, MaskChannel
from robustpatch.networks import TokenDropViT, build
from robustpatch.networks.library import create, normalization
from robustpatch.networks.widen import MEAN, STD, Normalized, widen
from tests import toys

SIZE, WHOLE = (32, 32), Columns(32, 32)  # one ablation, which keeps everything
SMALL: dict[str, Any] = {"patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 2}


def convolutional(channels: int = 3) -> nn.Module:
    def build_it() -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 32 * 32, 5))

    return toys.seeded(build_it)


class Twice(nn.Module):
    """Reads the image by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, dilation=2), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.cat([branch(x).relu().mean(dim=(2, 3)) for branch in (self.one, self.two)], dim=1))


class Standardized(nn.Conv2d):
    """Weights standardised as they are used."""

    def forward(self, input):
        weight = (self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)) / self.weight.std(dim=(1, 2, 3))[0]
        return nn.functional.conv2d(input, weight, self.bias)


MODELS = {
    "convolutions": convolutional,
    "two readers": lambda: toys.seeded(Twice),
    "standardised": lambda: toys.seeded(lambda: nn.Sequential(Standardized(3, 4, 32), nn.Flatten())),
    "resnet18": lambda: toys.seeded(lambda: torchvision.models.resnet18(num_classes=5)),
    "timm's resnet": lambda: toys.seeded(lambda: timm.create_model("resnet10t", num_classes=5)),
    "timm's transformer": lambda: toys.seeded(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=SIZE, num_classes=5, **SMALL)
    ),
}


@pytest.mark.parametrize("encoding", [ComplementChannels(), MaskChannel()])
@pytest.mark.parametrize("name", list(MODELS))
def test_a_kept_image_scores_as_before(name, encoding):
    """The model on the normalised image and the wrapped one on the image agree; the model given is left as it is."""
    model, x = MODELS[name](), toys.images(2, 3, SIZE)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = wrap(model, WHOLE, image_size=SIZE, mean=MEAN, std=STD, encoding=encoding)
    with torch.no_grad():
        expected = model(Normalized(MEAN, STD)(x))
        torch.testing.assert_close(wrapped.logits(x)[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert wrapped.num_classes == expected.shape[1]
    assert not wrapped.training


def test_grey_images_are_shown_in_every_channel():
    """One channel through a model of three."""
    model, x = convolutional(), toys.images(2, 1, SIZE)
    wrapped = wrap(model, WHOLE, image_size=SIZE, in_channels=1, mean=MEAN, std=STD)
    expected = model(Normalized(MEAN, STD)(x))
    torch.testing.assert_close(wrapped.logits(x)[:, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_hidden_pixel_adds_nothing_at_first():
    """NULL is where the mean colour is, for the weights as widened, and the weights can tell them apart."""
    model = convolutional()
    wide = widen(model, ComplementChannels(), image_size=SIZE, in_channels=3, mean=MEAN, std=STD)
    colour = torch.tensor(MEAN)[None, :, None, None].expand(1, 3, *SIZE)
    encoded = ComplementChannels()(colour, torch.ones(1, *SIZE, dtype=torch.bool))
    torch.testing.assert_close(wide(encoded), wide(torch.zeros_like(encoded)), atol=1e-5, rtol=0)
    (weight,) = torch.autograd.grad(wide(encoded).sum(), wide[0].weight)  # type: ignore[index, operator]
    assert weight.abs().sum() > 0
    wide[0].weight.data += 0.1  # type: ignore[index, operator, union-attr]
    assert (wide(encoded) - wide(torch.zeros_like(encoded))).abs().max() > 1e-2


def test_without_a_normalisation():
    """Mean 0.5 and std 1 halve and mirror the weights; none at all leaves those of the image."""
    for mean, parts in (((0.5,) * 3, (0.5, -0.5)), ((0.0,) * 3, (1.0, 0.0))):
        model = convolutional()
        weight = model[0].weight.clone()  # type: ignore[index, operator, union-attr]
        options: dict[str, Any] = {"image_size": SIZE, "in_channels": 3, "mean": mean, "std": (1.0,) * 3}
        wide = widen(model, ComplementChannels(), **options)
        torch.testing.assert_close(wide[0].weight, torch.cat([part * weight for part in parts], dim=1))  # type: ignore[index, operator]


def test_the_normalisation_of_a_model():
    """timm's own, ImageNet's for torchvision's, none for others; both of a pair, and no zero."""
    assert normalization(timm.create_model("vit_tiny_patch16_224", **SMALL), None, None) == ((0.5,) * 3, (0.5,) * 3)
    assert normalization(torchvision.models.resnet18(), None, None) == (MEAN, STD)
    assert normalization(convolutional(), None, None) == ((0.0,) * 3, (1.0,) * 3)
    for mean, std in (((0.5,) * 3, None), ((0.5,) * 3, (0.0,) * 3), ((0.5,), (1.0, 1.0))):
        with pytest.raises(InvalidInput, match=r"mean is .* and std"):
            normalization(convolutional(), mean, std)


def test_by_name():
    """torchvision's and timm's, transformers with dropped tokens; they certify."""
    x = toys.images(2, 3, SIZE)
    for name, options in (("torchvision:resnet18", {}), ("timm:vit_tiny_patch16_224", SMALL)):
        model = wrap(name, Columns(9, 5), num_classes=4, image_size=SIZE, voting=TopOne(), **options)
        assert isinstance(model.base, TokenDropViT) == name.startswith("timm")
        assert model.scores(x).shape == (2, 7, 4)
        assert torch.equal(model.certify(x, PatchThreat(3, 3)).prediction, model.predict(x))


def test_the_guide_s_example():
    """It runs as printed, and drops tokens."""
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "models.md").read_text()
    example = guide.split("## A model of torchvision or timm")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(example, names)
    assert isinstance(names["vit"].base, TokenDropViT)
    assert names["vit"].ablation.count(224, 224) == 23


def test_torchvisions_transformer():
    """Of any patch size and resolution; all tokens kept score as the model."""
    options: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    model = toys.seeded(lambda: torchvision.models.VisionTransformer(30, 6, **options))
    nn.init.normal_(model.heads.head.weight)  # type: ignore[union-attr, operator, arg-type]
    x = toys.images(2, 3, (30, 30))
    wrapped = wrap(model, Columns(30, 30), image_size=(30, 30))
    assert isinstance(wrapped.base, TokenDropViT)
    torch.testing.assert_close(wrapped.logits(x)[:, 0], model(Normalized(MEAN, STD)(x)), atol=1e-4, rtol=1e-4)


def test_wrong_calls():
    """Unknown models, sizes, classes and options that do not fit: by name, with the remedy."""
    for name, why in (("torchvision:nonsense", "nonsense"), ("timm:nonsense", "nonsense")):
        with pytest.raises(InvalidInput, match=f"model is {name}, which .* does not build .*{why}"):
            wrap(name, WHOLE, image_size=SIZE)
    with pytest.raises(InvalidInput, match='model is "nonsense"'):
        wrap("nonsense", WHOLE, image_size=SIZE)
    with pytest.raises(InvalidInput, match=r"fails on images of shape \(3, 16, 16\).*choose the image_size"):
        wrap(convolutional(), Columns(3), image_size=(16, 16))
    with pytest.raises(InvalidInput, match="num_classes is 7, but the model has 5 outputs"):
        wrap(convolutional(), WHOLE, image_size=SIZE, num_classes=7)
    with pytest.raises(InvalidInput, match="options depth are for a model by name"):
        wrap(convolutional(), WHOLE, image_size=SIZE, depth=3)
    with pytest.raises(InvalidInput, match="images have 4 channels, but the model reads 3"):
        wrap(convolutional(), WHOLE, image_size=SIZE, in_channels=4)
    with pytest.raises(InvalidInput, match=r"answers with .*not with logits"):
        wrap(nn.Conv2d(3, 4, 1), WHOLE, image_size=SIZE)
    with pytest.raises(InvalidInput, match="sees squares; take timm's"):
        wrap("torchvision:vit_b_16", WHOLE, image_size=(32, 48))


CONFIG: dict[str, Any] = {
    "network": {"name": "vit", **SMALL},
    "image_shape": [3, 32, 32],
    "class_names": ["a", "b", "c"],
    "ablation": "columns:9/5",
    "voting": "top1",
    "guard": None,
    "encoding": "complement",
}


@pytest.mark.parametrize("network", [CONFIG["network"], {"name": "torchvision:resnet18"}, {"name": "timm:resnet10t"}])
def test_a_round_trip_through_a_checkpoint(tmp_path, network):
    """Written and read, the same scores; weights that were downloaded once are not downloaded to be overwritten."""
    config, x = {**CONFIG, "network": network}, toys.images(1, 3, SIZE)
    model: Any = toys.seeded(lambda: model_from(config))
    save_checkpoint(tmp_path / "it.safetensors", model, {**config, "network": {**network, "pretrained": True}})
    loaded = load_checkpoint(tmp_path / "it.safetensors").smoothed
    assert torch.equal(loaded.scores(x), model.scores(x))
    assert loaded.ablation == Columns(9, 5)


def test_build_without_an_ablation_or_with_a_sparse_one():
    """The model itself after its normalisation; of pixels at random, every token may be kept in part: enumerated."""
    common: dict[str, Any] = {"image_shape": (3, *SIZE), "num_classes": 3, "options": SMALL}
    x, bare = toys.images(2, 3, SIZE), build("vit", ablation=None, encoding=None, **common)
    assert bare(x).shape == (2, 3)
    assert bare.to(torch.bfloat16)(x).dtype == torch.bfloat16
    assert not hasattr(bare, "score_all")
    sparse = build("vit", ablation=SparseAblation(5), encoding=ComplementChannels(), **common)
    assert sparse(torch.zeros(2, 6, *SIZE)).shape == (2, 3)
    with pytest.raises(InvalidInput, match=r"known are .*timm:NAME"):
        build("resnet", ablation=None, encoding=None, **common)


@pytest.mark.parametrize(
    ("name", "ablation", "known"),
    [("strip", Columns(2), "widths"), ("small-cnn", Columns(2), "widths"), ("union", Columns(2), "parts")],
)
def test_an_option_that_a_network_does_not_have(name, ablation, known):
    """`--pretrained` with a network of ours, or a slip in a recipe: refused by name, with what there is."""
    with pytest.raises(InvalidInput, match=f"network {name}: pretrained is no option here; known are .*{known}"):
        build(
            name,
            ablation=ablation,
            image_shape=(1, 8, 8),
            num_classes=3,
            encoding=ComplementChannels(),
            options={"pretrained": True},
        )


@pytest.mark.parametrize(("name", "last"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_pretrained_weights_for_other_classes(name, last, monkeypatch):
    """Of torchvision's, all but the layers that tell classes apart; `get_model` stands in for the download."""
    original, made, before = torchvision.models.get_model, [], []

    def get_model(name, weights=None, **options):
        assert weights is None or "num_classes" not in options  # as torchvision has it
        made.append((weights, original(name, **options)))
        before.append({key: tensor.clone() for key, tensor in made[-1][1].state_dict().items()})
        return made[-1][1]

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    model = create(f"torchvision:{name}", num_classes=4, image_size=(224, 224), pretrained=True)
    (weights, source), (nothing, fresh) = made
    assert (weights, nothing, model) == ("DEFAULT", None, source)
    wanted, kept, trained = fresh.state_dict(), model.state_dict(), before[0]
    assert [tensor.shape for tensor in kept.values()] == [tensor.shape for tensor in wanted.values()]
    for key, tensor in kept.items():
        assert torch.equal(tensor, (wanted if key.startswith(f"{last}.") else trained)[key]), key
    whole = create(f"torchvision:{name}", num_classes=None, image_size=(224, 224), pretrained=True)
    assert whole is made[2][1]

"""Images of 224×224: what dropping tokens, bfloat16, channels-last and `torch.compile` are worth, as ratios, and that
none of them changes a vote that is not close. `make bench`; `imagenet.py` here makes the tables of docs/imagenet.md.
"""

from __future__ import annotations

import pytest
import torch

from robustpatch import Columns, SmoothedClassifier, TopOne, wrap
from robustpatch.networks.vit import TokenDropViT

BANDS = Columns(19, 10)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def untrained(name: str, **options) -> SmoothedClassifier:
    """Weights of seed 0; the head scaled, so that votes differ."""
    torch.manual_seed(0)
    model = wrap(name, BANDS, num_classes=100, voting=TopOne(), **options).requires_grad_(False)
    network = model.base.vit if isinstance(model.base, TokenDropViT) else model.base
    network.get_submodule("head" if name.startswith("timm") else "fc").weight.mul_(30)  # type: ignore[operator]
    return model


def same_votes(one: SmoothedClassifier, other: SmoothedClassifier, x: torch.Tensor) -> None:
    """Votes differ only where they are close in the less precise of the two."""
    first, second = one.votes(x), other.votes(x)
    close = first.close | second.close
    assert torch.equal(first.cast | close, second.cast | close)


def test_dropping_against_all_tokens(against, image) -> None:
    """ViT-Tiny/16: the tokens of a band, 23 bands at once, against all tokens, one band after another."""
    model = untrained("timm:vit_tiny_patch16_224")
    assert isinstance(model.base, TokenDropViT)
    naive = SmoothedClassifier(model.base.vit, BANDS, num_classes=100, voting=TopOne(), chunk=1).eval()
    target = "at least 4"
    against(
        "all tokens / tokens dropped",
        lambda: model.votes(image),
        lambda: naive.votes(image),
        rounds=3,
        target=target,
        inverse=True,
    )


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "torchvision:resnet50"])
@pytest.mark.parametrize("setting", ["bfloat16", "one at a time", "compiled"])
def test_settings(against, image, name, setting) -> None:
    """Each against float32, as many at once as is chosen, not compiled."""
    plain, other = untrained(name), untrained(name, compiled=setting == "compiled")
    if setting == "bfloat16":
        other.to(torch.bfloat16)
    if setting == "one at a time":
        other.chunk = 1
    same_votes(plain, other, image)
    label = f"{name}: float32 / {setting}"
    against(label, lambda: other.votes(image), lambda: plain.votes(image), rounds=3, target="none set", inverse=True)


def test_channels_last(against, image) -> None:
    """ResNet-50 as `wrap` leaves it, against contiguous weights."""
    plain, other = untrained("torchvision:resnet50"), untrained("torchvision:resnet50")
    other.base.to(memory_format=torch.contiguous_format)
    same_votes(plain, other, image)
    label = "torchvision:resnet50: contiguous / channels last"
    against(label, lambda: plain.votes(image), lambda: other.votes(image), rounds=3, target="none set", inverse=True)

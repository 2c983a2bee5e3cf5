"""PITFALLS 15, 21: a transformer with dropped tokens against the transformer's own parts, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import nn
from torchvision.models import VisionTransformer

from robustpatch import Blocks, Columns, GridBlocks, InvalidInput, PatchThreat, Rows, SmoothedClassifier, Threshold
from robustpatch import Union as Several
from robustpatch.classifiers import base_check
from robustpatch.encoding import ComplementChannels, MaskChannel
from robustpatch.networks.vit import TokenDropViT
from tests import toys

SIZE, SIDES, CLASSES = (8, 12), (4, 2), 5
COMMON: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": CLASSES}
COMMON |= {"img_size": SIZE, "patch_size": SIDES}
KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "pooled": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.5},
    "attention pool": {"class_token": False, "global_pool": "map", "qk_norm": True},
    "no positions": {"pos_embed": "none"},
    "any size": {"dynamic_img_size": True, "pre_norm": True},
}
ABLATIONS = [
    *(Columns(1), Columns(3), Columns(5, 3), Columns(12), Rows(3), Rows(2, 3), Blocks(3), Blocks(3, 5, 2)),
    *(GridBlocks(3, 2), Several((Columns(2, 2), Rows(3, 3)))),
]


def awake(build, seed: int = 0) -> nn.Module:
    """A transformer whose every parameter does something."""
    vit = toys.seeded(build, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return vit


def timm_vit(kind: str, channels: int = 6) -> nn.Module:
    return awake(lambda: TimmViT(in_chans=channels, **{**COMMON, **KINDS[kind]}))


def torchvision_vit(channels: int = 6, size: int = 8) -> nn.Module:
    def build() -> nn.Module:
        vit = VisionTransformer(size, 4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES)
        vit.conv_proj = nn.Conv2d(channels, 16, 4, stride=4)
        return vit

    return awake(build)


def dropped(ablation, kind: str = "class token", **options) -> TokenDropViT:
    options = {"image_size": SIZE, **options}
    return TokenDropViT(timm_vit(kind), ablation, **options).eval()


@torch.no_grad()
def by_definition(vit: Any, x, mask, encoding, sides):
    """Logits of one image [1,C,H,W] of which `mask` is kept: all tokens by the transformer's own embedding of the
    encoded image, those with a kept pixel picked out in loops, and the rest of the transformer over them.
    """
    encoded = encoding(x, mask[None])
    columns = x.shape[3] // sides[1]
    places = []
    for t in range(x.shape[2] // sides[0] * columns):
        row, column = divmod(t, columns)
        pixels = [(row * sides[0] + i, column * sides[1] + j) for i in range(sides[0]) for j in range(sides[1])]
        if any(bool(mask[pixel]) for pixel in pixels):
            places.append(t)
    if isinstance(vit, VisionTransformer):
        tokens = torch.cat([vit.class_token, vit._process_input(encoded)], dim=1) + vit.encoder.pos_embedding
        tokens = tokens[:, [0, *(1 + t for t in places)]]
        return vit.heads(vit.encoder.ln(vit.encoder.layers(tokens))[:, 0])[0], len(places)
    tokens = vit._pos_embed(vit.patch_embed(encoded))
    first = vit.num_prefix_tokens
    tokens = tokens[:, [*range(first), *(first + t for t in places)]]
    return vit.forward_head(vit.norm(vit.blocks(vit.norm_pre(tokens))))[0], len(places)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
@pytest.mark.parametrize("kind", ["class token", "pooled"])
def test_scores_are_those_of_the_kept_tokens(kind, ablation):
    """Every ablation, wraps and strides included, against the definition."""
    net, x = dropped(ablation, kind), toys.images(2, 3, SIZE)
    logits = net.score_all(x)
    for n, mask in enumerate(ablation.masks(*SIZE)):
        for b in range(2):
            expected, _ = by_definition(net.vit, x[b : b + 1], mask, ComplementChannels(), SIDES)
            torch.testing.assert_close(logits[b, n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("encoding", [ComplementChannels(), MaskChannel()])
def test_every_kind_of_timm_transformer(kind, encoding):
    """Class token or pooled, registers, attention pooling, positions or none; both encodings."""
    vit, ablation, x = timm_vit(kind, encoding.channels(3)), Columns(3, 2), toys.images(1, 3, SIZE)
    net = TokenDropViT(vit, ablation, image_size=SIZE, encoding=encoding).eval()
    for n, mask in enumerate(ablation.masks(*SIZE)):
        expected, _ = by_definition(vit, x, mask, encoding, SIDES)
        torch.testing.assert_close(net.score_all(x)[0, n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ablation", [Columns(3), Rows(5, 2), Blocks(3, 5)], ids=str)
def test_torchvision_and_distilled(ablation):
    """torchvision's transformer, and DeiT with its second head."""
    distilled = {**COMMON, "img_size": (8, 8), "patch_size": (4, 4)}
    for vit in (torchvision_vit(), awake(lambda: VisionTransformerDistilled(in_chans=6, **distilled))):
        net, x = TokenDropViT(vit, ablation, image_size=(8, 8)).eval(), toys.images(1, 3, (8, 8))
        for n, mask in enumerate(ablation.masks(8, 8)):
            expected, _ = by_definition(vit, x, mask, ComplementChannels(), (4, 4))
            torch.testing.assert_close(net.score_all(x)[0, n], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ablation", ABLATIONS, ids=str)
def test_the_receptive_field_is_the_band(ablation):
    """The gradient of band n's logits is zero off the band, and not zero at any pixel of it."""
    net, x = dropped(ablation), toys.images(1, 3, SIZE).requires_grad_()
    logits = net.score_all(x)[0]
    for n, mask in enumerate(ablation.masks(*SIZE)):
        (gradient,) = torch.autograd.grad(logits[n, 0] + 2 * logits[n, 1], x, retain_graph=True)
        assert torch.equal(gradient[0].abs().sum(dim=0) > 0, mask)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("ablation", [Columns(3), Blocks(3, 5, 2), GridBlocks(3, 2)], ids=str)
def test_pixels_off_the_band_do_not_reach_it(ablation, bad):
    """NaN, infinity and 1e30 at one pixel: in the same pass, all ablations that hide it are bitwise equal."""
    net, x, masks = dropped(ablation), toys.images(2, 3, SIZE), ablation.masks(*SIZE)
    clean = net.score_all(x)
    for row, column in ((0, 0), (3, 7), (7, 11)):
        spoilt = x.clone()
        spoilt[0, :, row, column] = bad
        logits = net.score_all(spoilt)
        hidden = ~masks[:, row, column]
        assert torch.equal(logits[0, hidden], clean[0, hidden])
        assert torch.equal(logits[1], clean[1])
        assert not torch.equal(logits[0], clean[0])


@pytest.mark.parametrize("ablation", [Columns(3), Columns(5, 3), Blocks(3, 5, 2)], ids=str)
def test_only_kept_tokens_are_computed(ablation):
    """The blocks see so many tokens as the definition counts, the class token aside: no padding, no hidden token."""
    seen: list[tuple[int, int]] = []
    net, x = dropped(ablation), toys.images(2, 3, SIZE)
    expected = [by_definition(net.vit, x[:1], mask, net.encoding, SIDES)[1] for mask in ablation.masks(*SIZE)]
    net.layers.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    net.score_all(x)
    assert sorted(tokens - 1 for _, tokens in seen) == sorted(set(expected))
    assert sum(pairs * (tokens - 1) for pairs, tokens in seen) == 2 * sum(expected)


def test_any_chunk_index_and_order():
    """Chunks of any size, an index for all images or one for each, and no index: the same scores."""
    ablation, x = Columns(4), toys.images(3, 3, SIZE)
    model = SmoothedClassifier(dropped(ablation), ablation, num_classes=CLASSES).eval()
    scores = model.scores(x)
    for chunk in (1, 5, 12, 36, 100):
        model.chunk = chunk
        torch.testing.assert_close(model.scores(x), scores, atol=1e-5, rtol=0)
    index = torch.tensor([[11, 0, 4], [3, 3, 2], [0, 5, 10]])
    own = torch.stack([scores[b, index[b]] for b in range(3)])
    torch.testing.assert_close(model.scores(x, index), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.scores(x, index[0]), scores[:, index[0]], atol=1e-5, rtol=0)
    assert model.scores(x[:0]).shape == (0, 12, CLASSES)


def test_gradients_through_chunks():
    """Chunk by chunk, computed again in the backward pass: the same gradient as at once, of image and weights."""
    ablation, x = Columns(4), toys.images(2, 3, SIZE)
    model = SmoothedClassifier(dropped(ablation), ablation, num_classes=CLASSES).eval()
    found = []
    for chunk in (24, 5):
        model.chunk = chunk
        own = x.clone().requires_grad_()
        model.zero_grad()
        model.soft(own)[:, 0].sum().backward()
        weight = model.base.vit.patch_embed.proj.weight  # type: ignore[union-attr]
        found.append((own.grad, weight.grad.clone()))
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("ablation", [Columns(3), Blocks(3, 5, 2)], ids=str)
def test_it_certifies(ablation):
    """The checks of a base pass, and one that reads more than its band is refused."""
    x = toys.images(4, 3, SIZE)
    model = SmoothedClassifier(dropped(ablation), ablation, num_classes=CLASSES, voting=Threshold(0.3)).eval()
    certificate = model.certify(x, PatchThreat(2, 2))
    assert torch.equal(certificate.prediction, model.predict(x))

    class Wide(TokenDropViT):
        def score_pairs(self, x, image, index):
            return super().score_pairs((x + x.roll(1, dims=3)) / 2, image, index)

    wide = Wide(timm_vit("class token"), ablation, image_size=SIZE)
    with pytest.raises(InvalidInput, match="sees more than its band"):
        SmoothedClassifier(wide, ablation, num_classes=CLASSES).eval().certify(x, PatchThreat(2, 2))


def test_other_precisions_cast_the_same_votes():
    """bfloat16 and float64: votes differ at most where they are close under the guard of bfloat16."""
    ablation, x = Columns(3), toys.images(8, 3, SIZE)
    scored = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = SmoothedClassifier(dropped(ablation), ablation, num_classes=CLASSES).eval().to(dtype)
        scored.append(model.votes(x))
        assert model.guard == (1e-2 if dtype == torch.bfloat16 else 1e-4)
    single, double, half = scored
    assert torch.equal(single.cast | single.close, double.cast | single.close)
    assert torch.equal(single.cast | half.close, half.cast | half.close)
    assert bool((single.cast & ~half.close).any())


def test_what_cannot_be_dropped_is_refused():
    """Other networks, other sizes, channels that do not fit, a transformer whose blocks know the order of tokens."""
    vit = timm_vit("class token")
    with pytest.raises(InvalidInput, match=r"vit is a Linear; tokens are dropped of timm's"):
        TokenDropViT(nn.Linear(2, 2), Columns(3))
    with pytest.raises(InvalidInput, match=r"no multiple of the tokens' 4x2 pixels"):
        TokenDropViT(vit, Columns(3), image_size=(9, 12))
    with pytest.raises(InvalidInput, match=r"positions for 12 tokens, but images of 16x12 have 24"):
        TokenDropViT(vit, Columns(3), image_size=(16, 12))
    with pytest.raises(InvalidInput, match=r"patch embedding of 3 channels, but images of 3 are 6 .* robustpatch.wrap"):
        TokenDropViT(timm_vit("class token", 3), Columns(3), image_size=SIZE)
    with pytest.raises(InvalidInput, match="built for 3 channels of 8x12"):
        TokenDropViT(vit, Columns(3), image_size=SIZE)(toys.images(1, 3, (12, 8)))

    class Ordered(nn.Module):
        def forward(self, tokens):
            return tokens + tokens.roll(1, dims=1)

    vit.blocks.append(Ordered())  # type: ignore[operator, union-attr]
    with pytest.raises(InvalidInput, match=r"depend on their order: none can be dropped"):
        TokenDropViT(vit, Columns(3), image_size=SIZE)

    class Shifted(TimmViT):
        def forward_features(self, x):
            return super().forward_features(x) + 1

    with pytest.raises(InvalidInput, match=r"differ from the transformer's own"):
        TokenDropViT(awake(lambda: Shifted(in_chans=6, **COMMON)), Columns(3), image_size=SIZE)


def test_the_check_leaves_the_modes():
    """A transformer in training mode is in training mode after it was looked at, each of its parts."""
    vit = timm_vit("class token").train()
    vit.norm.eval()  # type: ignore[union-attr]
    net = TokenDropViT(vit, Columns(3), image_size=SIZE)
    assert net.training
    assert vit.training
    assert not vit.norm.training  # type: ignore[union-attr]


@pytest.mark.slow
def test_compiled(monkeypatch):
    """The blocks compiled: the same votes away from the guard."""
    ablation, x = Columns(3), toys.images(4, 3, SIZE)
    model = SmoothedClassifier(dropped(ablation), ablation, num_classes=CLASSES).eval()
    model.certify(x, PatchThreat(2, 2))
    before = model.votes(x)
    found, original = [], base_check.base_is_sound
    monkeypatch.setattr(base_check, "base_is_sound", lambda *a, **b: found.append(b["again"]) or original(*a, **b))
    model.base.layers.compile(dynamic=True)  # type: ignore[union-attr, operator]
    model.certify(x, PatchThreat(2, 2))
    assert found == [False]  # what was found of the base before is not taken for granted
    after = model.votes(x)
    assert torch.equal(before.cast | before.close, after.cast | before.close)

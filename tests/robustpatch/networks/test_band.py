"""`BandNet`: sees its band and nothing else, by index as at once, and learns in bfloat16 what it would in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.errors import InvalidInput
from robustpatch.networks import BandNet, build
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.training.config import TrainingConfig
from robustpatch.training.losses import objective, touched_sets
from tests import toys


@pytest.mark.parametrize(("ablation", "size"), toys.BANDS)
def test_bands_by_index_are_those_scored_at_once(ablation, size):
    """In both shapes of an index; alone and in company; NaN and 1e30 off a band leave its logits bitwise equal."""
    net: Any = toys.band(ablation, size)
    x, masks = toys.images(3, 1, size), ablation.masks(*size)
    with torch.no_grad():
        whole = net(x)
        back = torch.arange(len(masks)).flip(0)
        torch.testing.assert_close(net.score_all(x, back), whole.flip(1), atol=1e-5, rtol=0)
        own = torch.stack([back, torch.arange(len(masks)), back.roll(1)])[:, :2]
        wanted = torch.stack([whole[b, own[b]] for b in range(3)])
        torch.testing.assert_close(net.score_all(x, own), wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(net(x[1:2]), whole[1:2], atol=1e-5, rtol=0)
        for n, mask in enumerate(masks):
            index = torch.tensor([n])
            for bad in (float("nan"), 1e30):
                assert torch.equal(net.score_all(torch.where(mask, x, bad), index), net.score_all(x, index))


@pytest.mark.parametrize("kind", [Columns, Rows])
def test_the_wrap_is_seen_in_order(kind):
    """Band 7 of 9 lines is [7, 8, 0, 1]: it scores as band 0 of the image rolled by two, with its own embedding."""
    size, along = ((8, 9), 3) if kind is Columns else ((9, 8), 2)
    net: Any = toys.band(kind(4), size)
    x = toys.images(1, 1, size)
    with torch.no_grad():
        net.embedding[0] = net.embedding[7]
        rolled = net.score_all(x.roll(2, dims=along))[0, 0]
        torch.testing.assert_close(rolled, net.score_all(x)[0, 7], atol=1e-5, rtol=0)
        assert (net.score_all(x.flip(along))[0, 7] - rolled).abs().max() > 1e-3


def test_the_embedding_tells_equal_bands_apart():
    """On a constant image all bands look alike; their numbers do not."""
    logits = toys.band(Columns(4), (8, 9))(torch.full((1, 1, 8, 9), 0.5))[0]
    assert len(logits.unique(dim=0)) == len(logits)


def test_it_certifies_by_name():
    """Built by name as recipes do, its proofs' assumptions are tested as any other's."""
    model = toys.smoothed(toys.band(Columns(4), (16, 16)), Columns(4))
    certificate = model.certify(toys.images(4, 1, (16, 16)), PatchThreat(2, 2))
    assert certificate.certified.shape == (4,)
    common = {"ablation": Columns(4), "num_classes": 10, "encoding": None, "image_shape": (3, 32, 32)}
    net = build("band", options={"widths": [8, 8, 8, 8], "blocks": [1, 1, 1, 1]}, **common)
    assert net(toys.images(2, 3, (32, 32))).shape == (2, 32, 10)


@pytest.mark.parametrize(("certificate", "shared"), [(0.0, False), (1.0, True)])
def test_each_image_of_a_step_draws_its_own_bands(certificate, shared):
    """No two of an image are the same, and batch statistics see every kind; the certificate's loss counts the votes of
    the same bands in every image. The same for the same generator.
    """
    net: Any = toys.band(Columns(4), (8, 9))
    asked, score = [], net.score_all

    def noted(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        asked.append(index.expand(len(x), -1))
        return score(x, index)

    net.score_all = noted
    model = toys.smoothed(net, Columns(4)).train()
    config = TrainingConfig(ablation="columns:4", ablations=3, certificate=certificate, bfloat16=False)
    threat = PatchThreat(2, 2)
    sets, x, y = touched_sets(Columns(4), threat, 8, 9), toys.images(40, 1, (8, 9)), torch.zeros(40, dtype=torch.long)
    for seed in (0, 0, 1):
        objective(model, x, y, config, threat, sets, torch.Generator().manual_seed(seed))
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])
    assert all(len(set(own)) == 3 for own in asked[0].tolist())
    assert bool((asked[0] == asked[0][:1]).all()) == shared
    if not shared:
        assert set(asked[0].flatten().tolist()) == set(range(9))


@pytest.mark.parametrize(
    ("ablation", "options", "message"),
    [
        (Blocks(4), {}, "ablation is blocks:4"),
        (Columns(3), {}, "bands of width 4"),
        (Columns(4), {"image_size": (30, 32)}, "length that 8 divides"),
        (Columns(4), {"widths": (4, 4, 4)}, "four numbers of each"),
        (Columns(4), {"blocks": (1, 1, 1, 0)}, "all at least 1"),
    ],
)
def test_it_refuses_what_it_cannot_see(ablation, options, message):
    """Other ablations, widths and lengths."""
    with pytest.raises(InvalidInput, match=message):
        BandNet(ablation, **options)


def test_bfloat16_agrees_with_float32_forward_and_backward():
    """At the shapes of CIFAR-10, where a kernel of PyTorch 2.14 fails on others: every gradient points where float32's
    does.
    """
    net: Any = toys.seeded(lambda: BandNet(Columns(4))).train()
    x, y = toys.images(16, 3, (32, 32)), torch.arange(16) % 10
    index = torch.arange(16)[:, None]
    found = {}
    for reduced in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            logits = net.score_all(x, index)
        torch.nn.functional.cross_entropy(logits.float()[:, 0], y).backward()
        found[reduced] = {name: weight.grad.clone() for name, weight in net.named_parameters()}
    for name, exact in found[False].items():
        cosine = torch.nn.functional.cosine_similarity(exact.flatten(), found[True][name].flatten(), dim=0)
        assert cosine > 0.9, name

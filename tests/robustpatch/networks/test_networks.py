"""PITFALLS 21: a one-pass base sees exactly its band, and scores what it would score band by band."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
from robustpatch.ablations.union import Union
from robustpatch.encoding import ComplementChannels
from robustpatch.errors import InvalidInput
from robustpatch.networks import (
    BlockNet,
    ConvBlockNet,
    GridNet,
    MnistCNN,
    PooledCNN,
    ResidualStripNet,
    ResNet18,
    SmallCNN,
    StripNet,
    build,
)
from tests import toys

CASES = [
    (kind(size, stride), image)
    for kind in (Columns, Rows)
    for size, stride in ((1, 1), (2, 1), (3, 1), (5, 1), (9, 1), (2, 3), (5, 2))
    for image in ((9, 13), (13, 9))
]
CASES += [
    (ablation, image)
    for ablation in (
        Blocks(1),
        Blocks(3),
        Blocks(2, 5),
        Blocks(4, 2, 3),
        GridColumns(3, 1),
        GridColumns(2, 2),
        GridColumns(2, 3),
        GridBlocks(3, 2),
    )
    for image in ((5, 7), (8, 5))
    if not (isinstance(ablation, Blocks) and ablation.width > image[1])
]
CASES += [(GridBlocks(5, 1), (9, 7)), (GridBlocks(3, 3), (6, 9)), (Blocks(7, 5), (7, 5))]
CASES += [(Union((Columns(2), Rows(3, 2))), (5, 7)), (Union((GridColumns(2, 2), Rows(1), Blocks(2))), (4, 6))]
NETS = [(toys.one_pass, *case) for case in CASES]
NETS += [(toys.residual_strip, *case) for case in CASES if isinstance(case[0], Columns | Rows)]
NETS += [(toys.residual_strip, kind(4), (9, 13)) for kind in (Columns, Rows)]
NETS += [(toys.conv_block, *case) for case in CASES if isinstance(case[0], Blocks) and case[0].stride == 1]
NETS += [(toys.conv_block, Blocks(4, 3), size) for size in ((5, 7), (8, 5))]
SEEING = [*NETS, *((toys.band, *case) for case in toys.BANDS)]


@pytest.mark.parametrize(("make", "ablation", "size"), SEEING)
def test_the_receptive_field_is_the_band(make, ablation, size):
    """The gradient of band n's logits is zero off the band and not zero on each of its rows and columns; 3 channels."""
    net: Any = make(ablation, size, in_channels=3)
    x = toys.images(1, 3, size).requires_grad_()
    logits, masks = net.score_all(x)[0], ablation.masks(*size)
    assert len(logits) == len(masks)
    for n, mask in enumerate(masks):
        (gradient,) = torch.autograd.grad(logits[n, 0] + 2 * logits[n, 1], x, retain_graph=True)
        seen = gradient[0].abs().sum(dim=0)
        assert not seen[~mask].any()
        assert (seen.sum(dim=0) > 0).tolist() == mask.any(dim=0).tolist()
        assert (seen.sum(dim=1) > 0).tolist() == mask.any(dim=1).tolist()


@pytest.mark.parametrize(("make", "ablation", "size"), NETS)
def test_one_pass_equals_its_enumeration(make, ablation, size):
    """`score_all(where(mask_n, x, fill))[:, n]` for fills 0, 1 and noise, and scores by index in both shapes."""
    net: Any = make(ablation, size)
    x, masks = toys.images(2, 1, size), ablation.masks(*size)
    n = len(masks)
    with torch.no_grad():
        one_pass = net.score_all(x)
        for fill in (torch.zeros(()), torch.ones(()), toys.images(1, 1, size, seed=9)):
            ablated = torch.where(masks[:, None, None], x, fill).flatten(0, 1)  # [N·B,1,H,W]
            seen = net.score_all(ablated).unflatten(0, (n, 2))[torch.arange(n), :, torch.arange(n)].transpose(0, 1)
            torch.testing.assert_close(seen, one_pass, atol=1e-5, rtol=0)
        back = torch.arange(n).flip(0)
        torch.testing.assert_close(net.score_all(x, back), one_pass.flip(1), atol=1e-5, rtol=0)
        pairs = torch.stack([back, torch.arange(n)])[:, :3]  # of a union, of different parts at one place
        own = torch.stack([one_pass[b, pairs[b]] for b in range(2)])
        torch.testing.assert_close(net.score_all(x, pairs), own, atol=1e-5, rtol=0)
        assert torch.equal(net(x), one_pass)


@pytest.mark.parametrize(
    ("make", "ablation"),
    [(toys.one_pass, some) for some in (Columns(2), Rows(2), Blocks(3), GridColumns(2, 1), GridBlocks(3, 1))]
    + [(toys.residual_strip, some) for some in (Columns(4), Rows(3, 2))]
    + [(toys.conv_block, Blocks(4))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("bad", [float("nan"), 1e30])
def test_pixels_off_the_band_do_not_reach_it_by_index(make, ablation, bad):
    """NaN and 1e30 off the band: bands asked for by index are bitwise equal, since they are cut out first."""
    size = (7, 7)
    net: Any = make(ablation, size)
    x = toys.images(1, 1, size)
    for n, mask in enumerate(ablation.masks(*size)):
        index = torch.tensor([n])
        assert torch.equal(net.score_all(torch.where(mask, x, bad), index), net.score_all(x, index))


@pytest.mark.parametrize("make", [toys.strip, toys.residual_strip])
@pytest.mark.parametrize("kind", [Columns, Rows])
def test_the_wrap_is_seen_in_order(make, kind):
    """The last band is [W-1, 0]: it scores as the first band of the image rolled by one, with its own embedding."""
    net, size = make(kind(2), (7, 7)), (7, 7)
    x, along = toys.images(1, 1, size), 3 if kind is Columns else 2
    with torch.no_grad():
        net.embedding[0] = net.embedding[6]
    rolled = x.roll(1, dims=along)  # its first two lines are the old last and first
    torch.testing.assert_close(net.score_all(rolled)[0, 0], net.score_all(x)[0, 6], atol=1e-5, rtol=0)
    swapped = x.clone()
    swapped.narrow(along, 0, 1).copy_(x.narrow(along, 6, 1))
    swapped.narrow(along, 6, 1).copy_(x.narrow(along, 0, 1))
    assert (net.score_all(swapped)[0, 6] - net.score_all(x)[0, 6]).abs().max() > 1e-3


@pytest.mark.parametrize("make", [toys.one_pass, toys.conv_block])
def test_a_block_wraps_in_order(make):
    """The last block holds the four corners of the image: as the block of a rolled image, with its own embedding."""
    net, size = make(Blocks(2), (5, 6)), (5, 6)
    x = toys.images(1, 1, size)
    with torch.no_grad():
        net.embedding[0] = net.embedding[29]  # type: ignore[index]
    torch.testing.assert_close(net(x.roll((1, 1), dims=(2, 3)))[0, 0], net(x)[0, 29], atol=1e-5, rtol=0)


def test_a_choice_of_cells_knows_their_places_and_not_their_order():
    """Of a grid: exchanging the content of two cells changes the logits; beyond the border nothing is seen."""
    ablation, size = GridColumns(3, 2), (4, 8)  # cells of 3, 3 and 2 columns
    net, x = toys.seeded(lambda: GridNet(ablation, image_size=size, features=8, hidden=8)), toys.images(1, 1, size)
    swapped = torch.cat([x[..., 3:6], x[..., :3], x[..., 6:]], dim=3)
    assert (net(swapped)[0, 0] - net(x)[0, 0]).abs().max() > 1e-4
    assert ablation.choices(*size).tolist() == [[0, 1], [0, 2], [1, 2]]


def test_networks_refuse_what_they_cannot_see():
    """Blocks for bands, bands for blocks, windows for cells; images of another size."""
    wrong = ((BlockNet, Columns(2)), (GridNet, Blocks(2)), (GridNet, Rows(2)), (ConvBlockNet, Blocks(8, stride=2)))
    for net, ablation in wrong:
        with pytest.raises(InvalidInput, match="ablation is"):
            net(ablation)
    with pytest.raises(InvalidInput, match="widths is"):
        BlockNet(Blocks(2), widths=[])
    for widths in ([], [4, 4]):
        with pytest.raises(InvalidInput, match=r"widths is .* give"):
            ConvBlockNet(Blocks(2), widths=widths)
    for ablation in (Rows(2), Blocks(2), GridBlocks(2, 2)):
        with pytest.raises(InvalidInput, match="built for 1 channels of 6x8 pixels"):
            toys.one_pass(ablation)(toys.images(1, 1, (8, 6)))


def test_the_embedding_tells_equal_bands_apart():
    """On a constant image all bands look alike; their numbers do not."""
    for net in (toys.strip(Columns(2)), toys.residual_strip(Columns(2))):
        logits = net(torch.full((1, 1, *toys.SIZE), 0.5))[0]
        assert len(logits.unique(dim=0)) == len(logits)


def test_a_strip_network_refuses_what_it_cannot_see():
    """Blocks, no layers, a band wider than the image."""
    with pytest.raises(Exception, match=r"columns or rows|type") as caught:
        StripNet(Blocks(2))  # type: ignore[arg-type]
    assert "ablation" in str(caught.value)
    with pytest.raises(InvalidInput, match="widths is"):
        StripNet(Columns(2), widths=[])
    with pytest.raises(InvalidInput, match="take at most 28"):
        StripNet(Columns(29))
    with pytest.raises(InvalidInput, match="ablation is blocks:2"):
        ResidualStripNet(Blocks(2))
    for options in ({"widths": []}, {"blocks": 0}):
        with pytest.raises(InvalidInput, match=r"widths is .* and blocks"):
            ResidualStripNet(Columns(2), **options)


def test_build_by_name():
    """Each network with the channels of the encoding; unknown names and sizes are refused."""
    common = {"ablation": Columns(2), "num_classes": 5, "encoding": ComplementChannels()}
    strip = build("strip", image_shape=(3, 6, 8), options={"widths": [4]}, **common)
    assert strip(toys.images(2, 3)).shape == (2, 8, 5)
    cnn = build("mnist-cnn", image_shape=(1, 28, 28), options={}, **common)
    assert isinstance(cnn, MnistCNN)
    assert cnn(torch.zeros(2, 2, 28, 28)).shape == (2, 5)
    small = build("small-cnn", image_shape=(3, 6, 8), options={"hidden": 7}, **common)
    assert small(torch.zeros(2, 6, 6, 8)).shape == (2, 5)
    deeper = build("residual-strip", image_shape=(3, 6, 8), options={"widths": [4], "blocks": 1}, **common)
    assert deeper(toys.images(2, 3)).shape == (2, 8, 5)
    assert build("resnet18", image_shape=(3, 6, 8), options={}, **common)(torch.zeros(2, 6, 6, 8)).shape == (2, 5)
    with pytest.raises(InvalidInput, match="28x28"):
        build("mnist-cnn", image_shape=(1, 32, 32), options={}, **common)
    with pytest.raises(InvalidInput, match="known are"):
        build("resnet-1", image_shape=(1, 28, 28), options={}, **common)


def test_build_without_an_ablation():
    """Networks of whole images see the image's own channels; one that sees bands is refused."""
    bare = {"ablation": None, "num_classes": 5, "encoding": None}
    assert build("mnist-cnn", image_shape=(3, 28, 28), options={}, **bare)(torch.zeros(2, 3, 28, 28)).shape == (2, 5)
    assert build("small-cnn", image_shape=(3, 6, 8), options={}, **bare)(torch.zeros(2, 3, 6, 8)).shape == (2, 5)
    with pytest.raises(InvalidInput, match=r"network is strip, which sees parts .* use small-cnn"):
        build("strip", image_shape=(1, 28, 28), options={}, **bare)


def test_the_papers_network_for_cifar10():
    """Not pooled before the mean: its last features are an eighth of the image, not a 32nd; 11.2 million parameters."""
    net = toys.seeded(ResNet18)
    assert sum(tensor.numel() for tensor in net.parameters()) == 11_173_962 + 64 * 9 * 3
    seen = []
    net.net.layer4.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))  # type: ignore[union-attr]
    assert net(toys.images(2, 6, (32, 32))).shape == (2, 10)
    assert seen == [(2, 512, 4, 4)]
    assert net.to(torch.bfloat16)(toys.images(1, 6, (32, 32))).dtype == torch.bfloat16


def test_the_usual_network():
    """About 420,000 parameters on MNIST; any size that can be halved; float images whatever its own precision."""
    net = toys.seeded(SmallCNN)
    assert sum(tensor.numel() for tensor in net.parameters()) == 436_202
    assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    x = toys.images(3, 3, (13, 9))
    other = toys.seeded(lambda: SmallCNN(image_size=(13, 9), in_channels=3, num_classes=4, widths=[2, 3, 4], hidden=6))
    assert other(x).shape == (3, 4)
    assert other.to(torch.bfloat16)(x).dtype == torch.bfloat16
    for options in ({"widths": []}, {"image_size": (28, 3)}, {"widths": [2] * 5}):
        with pytest.raises(InvalidInput, match=r"widths is .* than the image can be halved"):
            SmallCNN(**options)


def test_the_network_for_small_photographs():
    """About two million parameters; any size that can be halved; one pixel reaches the logits from any corner."""
    net = toys.seeded(PooledCNN)
    assert sum(tensor.numel() for tensor in net.parameters()) == 1_977_514
    x = toys.images(3, 4, (13, 9))
    other = toys.seeded(lambda: PooledCNN(image_size=(13, 9), in_channels=4, num_classes=5, widths=[3, 6, 4], first=2))
    assert other(x).shape == (3, 5)
    assert other.to(torch.bfloat16)(x).dtype == torch.bfloat16
    built = build(
        "pooled-cnn", image_shape=(3, 9, 9), num_classes=5, options={"widths": [4]}, ablation=None, encoding=None
    )
    x = toys.images(1, 3, (9, 9))
    for row, column in ((0, 0), (8, 8)):
        changed = x.clone()
        changed[..., row, column] += 9
        assert (built.eval()(changed) != built.eval()(x)).any()
    for options in ({"widths": []}, {"image_size": (32, 8)}, {"widths": [2, 0]}, {"first": 0}):
        with pytest.raises(InvalidInput, match=r"widths is .* than the image can be halved"):
            PooledCNN(**options)

"""PITFALLS 31: the networks' convolutions are right in bfloat16 too, whatever lay in memory before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.networks import build
from robustpatch.networks.convolution import Conv2d, conv2d, misread
from robustpatch.networks.resnet import ResNet18
from robustpatch.networks.small_cnn import SmallCNN
from tests import lying, toys

SHAPES = {  # channels, width, kernel, stride, padding of convolutions that oneDNN misreads
    "output of width 1": (128, 2, (3, 3), (2, 2), (1, 1)),
    "image of width 1": (16, 1, (3, 3), (2, 2), (1, 1)),
    "one wide band": (6, 10, (5, 10), (1, 10), (2, 0)),
    "kernel 4, stride 2": (32, 3, (4, 4), (2, 2), (1, 1)),
    "wide bands": (6, 32, (5, 16), (1, 1), (2, 0)),
    "patches of six channels": (6, 64, (16, 16), (16, 16), (0, 0)),
    "few channels": (16, 8, (4, 4), (2, 2), (1, 1)),
}


def drawn(name: str) -> tuple[Tensor, Tensor, Tensor, tuple[int, int], tuple[int, int]]:
    """Images, weights and bias in bfloat16's numbers, stride and padding."""
    channels, width, kernel, stride, padding = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, channels, 16, width, generator=generator)
    weight = torch.randn(64, channels, *kernel, generator=generator) / (channels * kernel[0] * kernel[1]) ** 0.5
    return x.bfloat16(), weight.bfloat16(), torch.randn(64, generator=generator).bfloat16(), stride, padding


def error(found: Tensor, right: Tensor) -> float:
    found, right = found.detach().float(), right.detach()
    return float((found - right).abs().max() / right.abs().max())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", list(SHAPES))
def test_bfloat16_is_float32_within_rounding(name, autocast):
    """Forward and both gradients, channels last or not, with NaN and large numbers left in memory."""
    x, weight, bias, stride, padding = drawn(name)
    wide = [tensor.float().requires_grad_() for tensor in (x, weight, bias)]
    right = functional.conv2d(*wide, stride, padding)
    back = torch.randn(right.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    gradients = torch.autograd.grad(right, wide, back.float())
    for value in (torch.nan, 1e4):
        for memory in (torch.contiguous_format, torch.channels_last):
            own = [tensor.detach() if autocast else tensor.detach().bfloat16() for tensor in wide]
            own[0] = own[0].contiguous(memory_format=memory)
            own = [tensor.requires_grad_() for tensor in own]
            lying.fill_memory(value)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found = conv2d(own[0], own[1], own[2], stride, padding)
            assert found.dtype == torch.bfloat16
            lying.fill_memory(value)
            seen = torch.autograd.grad(found, own, back)
            errors = [error(a, b) for a, b in zip((found, *seen), (right, *gradients), strict=True)]
            assert max(errors) < 0.02, (errors, value, memory)


def test_in_float32_it_is_the_usual_one():
    """To the bit, in float32 and float64; and in bfloat16 where the shape is safe."""
    for name in SHAPES:
        x, weight, bias, stride, padding = drawn(name)
        for kind in (torch.float32, torch.float64):
            own = [tensor.to(kind) for tensor in (x, weight, bias)]
            assert torch.equal(conv2d(*own, stride, padding), functional.conv2d(*own, stride, padding))
    x, weight = torch.ones(2, 64, 8, 8).bfloat16(), torch.ones(8, 64, 3, 3).bfloat16()
    assert torch.equal(conv2d(x, weight, None, (2, 2), (1, 1)), functional.conv2d(x, weight, None, 2, 1))


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9 has fewer switches")
def test_float32_that_is_computed_in_bfloat16():
    """oneDNN's switch for float32 convolutions is heeded, and is left as it was."""
    x, weight, bias, stride, padding = drawn("output of width 1")
    own = [tensor.float() for tensor in (x, weight, bias)]
    right = functional.conv2d(*own, stride, padding)
    backends: Any = torch.backends
    switch = backends.mkldnn.conv
    before = switch.fp32_precision
    try:
        switch.fp32_precision = "bf16"
        lying.fill_memory(torch.nan)
        found = conv2d(*own, stride, padding)
        assert found.dtype == torch.float32
        assert error(found, right) < 1e-5
        assert switch.fp32_precision == "bf16"
    finally:
        switch.fp32_precision = before


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_shapes_are_known(name):
    channels, width, kernel, stride, padding = SHAPES[name]
    assert misread((8, channels, 16, width), (64, channels, *kernel), stride, padding)


@pytest.mark.skipif(not lying.reads_foreign_memory(), reason="no kernel here reads memory that nobody wrote")
@pytest.mark.parametrize("name", ["output of width 1", "image of width 1", "kernel 4, stride 2"])
def test_the_kernel_reads_memory_that_nobody_wrote(name):
    """The reproducer: the same call, but for what lay in memory before it. When this fails, oneDNN is mended. (Which
    block of memory a call is given is a matter of chance, so it is called some times.)"""
    x, weight, _, stride, padding = drawn(name)
    seen = []
    for value in (torch.nan, 1e4, -1e4) * 10:
        lying.fill_memory(value)
        seen.append(functional.conv2d(x, weight, None, stride, padding))
    assert not all(torch.equal(seen[0], other) for other in seen[1:])


@pytest.mark.skipif(not lying.multiplies_wrongly(), reason="no kernel here multiplies with the wrong weights")
@pytest.mark.parametrize("name", ["wide bands", "patches of six channels"])
def test_the_kernel_is_wrong_in_the_same_way_every_time(name):
    """So that no comparison with itself can tell. When this fails, oneDNN is mended."""
    x, weight, _, stride, padding = drawn(name)
    right = functional.conv2d(x.float(), weight.float(), None, stride, padding)
    first, second = (functional.conv2d(x, weight, None, stride, padding) for _ in range(2))
    assert torch.equal(first, second)
    assert error(first, right) > 0.5


NETWORKS: dict[str, tuple[str, Ablation, dict, tuple[int, int, int]]] = {
    "strip, one band": ("strip", Columns(10), {"widths": [32, 32], "hidden": 8}, (3, 16, 20)),
    "strip, wide bands": ("strip", Columns(16), {"widths": [32, 32], "hidden": 8}, (3, 16, 20)),
    "strip, rows": ("strip", Rows(16), {"widths": [32, 32], "hidden": 8}, (3, 20, 16)),
    "residual-strip": ("residual-strip", Columns(12), {"widths": [32, 48], "blocks": 1}, (3, 16, 20)),
    "residual-strip, grey": ("residual-strip", Columns(4), {"widths": [16, 32], "blocks": 1}, (1, 16, 20)),
    "residual-strip, stride": ("residual-strip", Columns(7, 3), {"widths": [16, 32], "blocks": 1}, (3, 16, 20)),
    "conv-block": ("conv-block", Blocks(8, 8), {"widths": [8, 24, 16], "hidden": 8}, (3, 12, 12)),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_networks_in_one_pass_are_right_in_bfloat16(name):
    """All ablations, and one alone, which makes outputs of width 1: as in float32, within rounding."""
    kind, ablation, options, shape = NETWORKS[name]
    net = toys.seeded(
        lambda: build(kind, ablation=ablation, image_shape=shape, num_classes=4, encoding=None, options=options)
    )
    x = toys.images(2, shape[0], (shape[1], shape[2]))
    for index in (None, torch.tensor([1]), torch.tensor([0, 2])):
        right = net.score_all(x, index)
        for value in (torch.nan, 1e4):
            lying.fill_memory(value)
            with torch.autocast("cpu", torch.bfloat16):
                assert error(net.score_all(x, index), right) < 0.05


@pytest.mark.parametrize("width", [8, 12])
def test_the_resnet_is_right_in_bfloat16_on_narrow_images(width):
    net, x = toys.seeded(lambda: ResNet18(num_classes=4)), toys.images(1, 6, (24, width))
    right = net(x)
    lying.fill_memory(torch.nan)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(net(x), right) < 0.05


@pytest.mark.parametrize(("width", "widths"), [(24, (32, 32, 32, 32)), (16, (16, 32)), (16, (24, 24))])
def test_the_small_network_is_right_in_bfloat16(width, widths):
    net = toys.seeded(lambda: SmallCNN(image_size=(64, width), num_classes=4, widths=widths, hidden=8, deeper=1))
    x = toys.images(2, 1, (64, width))
    right = net(x)
    lying.fill_memory(torch.nan)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(net(x), right) < 0.05


def test_the_networks_as_shipped_are_built_of_plain_convolutions():
    """Where no shape is misread, so that interval bounds know them; names and shapes of the state are equal."""
    plain = SmallCNN()
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}
    own, usual = Conv2d(3, 4, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)
    own.load_state_dict(usual.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(own(x), usual(x))

"""The speed of training, as ratios: how much of what this machine's convolutions can do a step gets out of it, and what
the step costs beside the network. No time is asserted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kornia.augmentation as kornia
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from robustpatch import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.networks import build
from robustpatch.training.augmentation import augmented
from robustpatch.training.config import TrainingConfig
from robustpatch.training.losses import objective

NETWORKS = {"residual-strip": (128, 4), "band": (256, 1)}  # batch size, bands of each image in a step


@pytest.fixture(scope="module")
def images() -> ImageSet:
    """Noise of CIFAR-10's size, as bytes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (2048, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet("noise", "train", tuple("0123456789"), (3, 32, 32), torch.arange(2048) % 10, _bytes=pixels)


def step_of(name: str, images: ImageSet) -> Callable[[], Any]:
    """One step of training in bfloat16, as `train` makes it, on the first images."""
    options: dict[str, Any] = {
        "ablation": Columns(4),
        "image_shape": (3, 32, 32),
        "num_classes": 10,
        "encoding": None,
        "options": {},
    }
    batch_size, drawn = NETWORKS[name]
    model = SmoothedClassifier(build(name, **options), Columns(4), num_classes=10).train()
    config = TrainingConfig(ablation="columns:4", network={"name": name}, ablations=drawn)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, fused=True)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        x, y = images.batch(range(batch_size))
        x = augmented(x, generator, crop=4, flip=True)
        loss = objective(model, x, y, config, None, None, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak() -> Callable[[], Any]:
    """A convolution that the machine is fast at, forward and backward: 128 channels, 3×3, on large images, bfloat16."""
    convolution = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    convolution = convolution.to(memory_format=torch.channels_last, dtype=torch.bfloat16)  # type: ignore[call-overload]
    x = torch.randn(2, 128, 32, 64).to(memory_format=torch.channels_last, dtype=torch.bfloat16).requires_grad_()
    gradient = torch.randn(2, 128, 32, 64).to(x)
    return lambda: convolution(x).backward(gradient)


def operations(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_against_the_peak_of_convolutions(against, images, name) -> None:
    """A step against as many operations in convolutions alone: its share of the peak, and its bands a second."""
    step, convolution = step_of(name, images), peak()
    times = round(operations(step) / operations(convolution))
    share = against(
        f"share of the convolutions' peak, a step of {name}",
        step,
        lambda: [convolution() for _ in range(times)],
        rounds=5,
        target="at least 0.4 of a network of wide convolutions",
        inverse=True,
    )
    assert share > 0


def test_crops_and_flips_against_kornias(against, images) -> None:
    """The whole batch by one gather against kornia's crops, image by image, with the same result but for the draws."""
    x, _ = images.batch(range(256))
    steps = [kornia.RandomCrop((32, 32), padding=4, cropping_mode="slice"), kornia.RandomHorizontalFlip()]

    def one_by_one() -> Tensor:
        seen = x
        for step in steps:
            seen = step(seen)
        return seen

    generator = torch.Generator().manual_seed(0)
    against(
        "crop and flip / kornia's",
        lambda: augmented(x, generator, crop=4, flip=True),
        one_by_one,
        rounds=9,
        target="at most 0.7",
    )


def test_images_and_their_augmentation_against_a_step(against, images) -> None:
    """Reading a batch from memory, moving and mirroring it, against the step that it is for."""
    generator = torch.Generator().manual_seed(0)
    against(
        "images of a step / the whole step of band",
        lambda: augmented(images.batch(range(256))[0], generator, crop=4, flip=True),
        step_of("band", images),
        rounds=5,
        target="at most 0.05",
    )

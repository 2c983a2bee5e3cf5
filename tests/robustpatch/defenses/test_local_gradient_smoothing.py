"""Local gradient smoothing against its definition, written out in loops."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import torch
from hypothesis import given
from hypothesis import strategies as st

from robustpatch.defenses.local_gradient_smoothing import LocalGradientSmoothing, windows_of_axis
from tests import toys

SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))


def starts(length: int, window: int, overlap: int) -> list[int]:
    """First positions of the windows of one axis: a stride apart until the end is reached, the last flush with it."""
    size, found = min(window, length), [0]
    while found[-1] + size < length:
        found.append(min(found[-1] + window - overlap, length - size))
    return found


def by_loops(image: torch.Tensor, defense: LocalGradientSmoothing) -> torch.Tensor:
    """The definition, pixel by pixel, of one image [C,H,W]."""
    channels, height, width = image.shape
    grey = [[float(sum(image[:, r, c])) / channels for c in range(width)] for r in range(height)]

    def at(r: int, c: int) -> float:
        return grey[min(max(r, 0), height - 1)][min(max(c, 0), width - 1)]

    magnitude = torch.zeros(height, width)
    for r in range(height):
        for c in range(width):
            across = sum(SOBEL[i][j] * at(r + i - 1, c + j - 1) for i in range(3) for j in range(3)) / 8
            down = sum(SOBEL[j][i] * at(r + i - 1, c + j - 1) for i in range(3) for j in range(3)) / 8
            magnitude[r, c] = sqrt(across**2 + down**2 + 1e-6)  # kornia's epsilon
    magnitude = (magnitude - magnitude.min()) / (magnitude.max() - magnitude.min())
    kept = torch.zeros_like(magnitude)
    high, wide = min(defense.window, height), min(defense.window, width)
    for r in starts(height, defense.window, defense.overlap):
        for c in starts(width, defense.window, defense.overlap):
            inside = (slice(r, r + high), slice(c, c + wide))
            if float(magnitude[inside].mean()) > defense.threshold:
                kept[inside] = magnitude[inside]
    return image * (1 - (defense.factor * kept).clamp(0, 1))


windows = st.integers(1, 7).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window - 1)))


@given(
    windows,
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 0.45, 0.6]),
    st.sampled_from([0.5, 1.0, 2.3]),
)
def test_every_pixel_is_as_defined(window, size, channels, threshold, factor):
    defense = LocalGradientSmoothing(*window, threshold=threshold, factor=factor)
    x = toys.images(2, channels, size)
    model = defense.wrap(toys.linear(channels, size), num_classes=toys.CLASSES)
    expected = torch.stack([by_loops(image, defense) for image in x])
    assert torch.allclose(model.clean(x), expected, atol=1e-5)


@given(windows, st.integers(1, 40))
def test_windows_cover_the_axis_and_overlap_by_what_they_are_asked(window, length):
    """Each of full size, the first and the last flush with the borders."""
    size, overlap = window
    found = windows_of_axis(length, size, overlap)
    assert found.any(dim=0).all()
    assert found.sum(dim=1).unique().tolist() == [min(size, length)]
    assert [int(row.nonzero()[0]) for row in found] == starts(length, size, overlap)
    assert all(int((a & b).sum()) >= min(overlap, length) for a, b in pairwise(found))


def test_a_noisy_patch_is_darkened_and_what_is_smooth_is_not():
    """Noise on a gentle slope: of the patch little is left, of what no window of it reaches everything."""
    slope = torch.linspace(0.2, 0.8, 40).expand(1, 1, 40, 40).clone()
    x = slope.clone()
    x[..., 4:14, 4:14] = (toys.images(1, 1, (10, 10)) > 0.5).float()
    model = LocalGradientSmoothing(10, 5).wrap(toys.linear(1, (40, 40)), num_classes=toys.CLASSES)
    cleaned = model.clean(x)
    assert float(cleaned[..., 5:13, 5:13].sum()) < 0.4 * float(x[..., 5:13, 5:13].sum())
    assert torch.equal(cleaned[..., 25:, :], x[..., 25:, :])


def test_the_border_s_pixels_are_in_some_window():
    """A patch in the last corner, where strides of 10 from the first end before it: darkened as anywhere else."""
    x = torch.zeros(1, 1, 28, 28)
    x[..., 23:, 23:] = (toys.images(1, 1, (5, 5)) > 0.5).float()
    defense = LocalGradientSmoothing(threshold=0.05)
    model = defense.wrap(toys.linear(1, (28, 28)), num_classes=toys.CLASSES)
    assert float(model.clean(x).sum()) < 0.5 * float(x.sum())

"""Certificates against shapes, timed and weighed against those of the square that holds the shape: `make bench`."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch

from robustpatch import certify_votes, parse_ablation
from robustpatch.threats import Disc, Mask, Patches, PatchThreat
from robustpatch.voting.votes import Votes


def votes_of(text: str, side: int, images: int, classes: int) -> Callable[[Patches], Callable[[], object]]:
    """Random votes of images of that side, to be certified against any patch."""
    ablation, generator = parse_ablation(text), torch.Generator().manual_seed(0)
    cast = torch.rand(images, ablation.count(side, side), classes, generator=generator) < torch.linspace(
        0.8, 0.1, classes
    )
    votes = Votes(cast, torch.zeros_like(cast))
    return lambda threat: lambda: certify_votes(votes, ablation, threat, (side, side)).margin


@pytest.mark.parametrize("text", ["columns:2", "rows:2", "blocks:4"])
def test_any_mask_against_its_bounding_square(against, text) -> None:
    """256 MNIST-sized images; the mask is the half of a 7x7 square that chance leaves, touched sets and all."""
    pixels = torch.rand(7, 7, generator=torch.Generator().manual_seed(1)) < 0.5
    pixels[0, 3] = pixels[3, 0] = pixels[6, 3] = pixels[3, 6] = True
    against_patch = votes_of(text, 28, 256, 10)
    mask = Mask.of(pixels)
    assert (mask.height, mask.width) == (7, 7)
    against(
        f"{text}, certificate against any 7x7 mask / the square",
        against_patch(mask),
        against_patch(PatchThreat(7, 7)),
        rounds=9,
        target="at most 2",
    )


def test_a_disc_against_its_bounding_square_among_all_blocks(against) -> None:
    """50,176 blocks on 224x224, ten classes, two images: touched sets and the certificate."""
    against_patch = votes_of("blocks:32", 224, 2, 10)
    against(
        "50,176 blocks, certificate against disc:43 / 43x43",
        against_patch(Disc(43)),
        against_patch(PatchThreat(43, 43)),
        rounds=5,
        target="at most 4",
    )


def peak(work: Callable[[], object]) -> int:
    """The most KiB that this process holds during `work` beyond what it held before. Linux counts these."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before goes back, so that it counts when taken again
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held now
    except (OSError, AttributeError):
        pytest.skip("the most memory held is counted on Linux alone")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("images", [1, 4])
def test_memory_of_a_disc_against_its_bounding_square(ratio, images) -> None:
    """The most that is held while votes are certified: touched sets, sums and margins."""
    against_patch = votes_of("blocks:32", 224, images, 10)
    works = [against_patch(threat) for threat in (Disc(43), PatchThreat(43, 43))]
    for work in works:
        work()  # what is loaded once is no part of it
    disc, square = (median(peak(work) for _ in range(5)) for work in works)
    ratio(
        f"50,176 blocks, {images} images: memory for disc:43, {disc / 1024:.0f} MiB / 43x43", disc / square, "at most 2"
    )

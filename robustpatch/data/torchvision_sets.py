"""MNIST, CIFAR-10, GTSRB and Imagenette, read as torchvision lays them out and downloaded where they are absent."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from robustpatch.data.framing import Framing
from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput

HELD_OUT = 5_000  # the last training images of MNIST and CIFAR-10, on which choices are made
_SIZES = {"gtsrb": (32, 32), "imagenette": (224, 224)}  # of files, whose own sizes differ
_SIGNS = (
    *(f"speed limit {limit}" for limit in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by trucks",
    "right of way at the next crossing",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "bend to the left",
    "bend to the right",
    "double bend",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic lights",
    "pedestrians",
    "children",
    "bicycles",
    "ice or snow",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "straight on",
    "straight on or right",
    "straight on or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by trucks",
)
_THINGS = (
    "tench",
    "English springer",
    "cassette player",
    "chain saw",
    "church",
    "French horn",
    "garbage truck",
    "gas pump",
    "golf ball",
    "parachute",
)


def mnist(root: Path, split: str, framing: Framing | None) -> ImageSet:
    """MNIST, [1,28,28], from `root`/MNIST."""
    read = _found(lambda sets, download: sets.MNIST(root, train=split != "test", download=download), "MNIST", root)
    return _in_memory("mnist", split, read.data[:, None], read.targets, tuple("0123456789"))


def cifar10(root: Path, split: str, framing: Framing | None) -> ImageSet:
    """CIFAR-10, [3,32,32], from `root`/cifar-10-batches-py."""
    read = _found(lambda sets, download: sets.CIFAR10(root, train=split != "test", download=download), "CIFAR10", root)
    images = torch.from_numpy(read.data).permute(0, 3, 1, 2).contiguous()
    return _in_memory("cifar10", split, images, torch.tensor(read.targets), tuple(read.classes))


def gtsrb(root: Path, split: str, framing: Framing | None) -> ImageSet:
    """German traffic signs, 43 classes, from `root`/gtsrb: as cropped by the benchmark, framed to 32×32 unless told.

    Validation is every eighth track of each class, whole: the frames of a track show one sign, nearly the same picture
    thirty times, so that single frames held out would measure memory. Test images are the official 12,630. (Stallkamp
    et al., The German Traffic Sign Recognition Benchmark, 2011.)
    """
    part = "test" if split == "test" else "train"
    _found(lambda sets, download: sets.GTSRB(root, split=part, download=download), "GTSRB", root)
    base = root / "gtsrb"
    if split == "test":
        with (base / "GT-final_test.csv").open(newline="") as table:
            rows = list(csv.DictReader(table, delimiter=";", skipinitialspace=True))
        labelled = [(base / "GTSRB/Final_Test/Images" / row["Filename"], int(row["ClassId"])) for row in rows]
        return _of_files("gtsrb", split, labelled, _SIGNS, framing)
    labelled = []
    for number in range(len(_SIGNS)):
        files = sorted((base / f"GTSRB/Training/{number:05d}").glob("*.ppm"))
        held = set(sorted({_track(file) for file in files})[3::8])
        labelled += [(file, number) for file in files if (_track(file) in held) == (split == "validation")]
    return _of_files("gtsrb", split, _in_turn(labelled) if split == "validation" else labelled, _SIGNS, framing)


def imagenette(root: Path, split: str, framing: Framing | None) -> ImageSet:
    """Ten easy classes of ImageNet, from `root`/imagenette2, framed to 224×224 unless told otherwise.

    Validation is every tenth training image; test images are torchvision's "val". Networks pretrained on ImageNet have
    seen the classes, and may have seen training images. (Howard, Imagenette, github.com/fastai/imagenette.)
    """
    part = "val" if split == "test" else "train"
    _found(lambda sets, download: sets.Imagenette(root, split=part, download=download), "Imagenette", root)
    folders = sorted(path for path in (root / "imagenette2" / part).iterdir() if path.is_dir())
    if len(folders) != len(_THINGS):
        raise InvalidInput(
            f"data-root is {root}, whose imagenette2/{part} holds {len(folders)} classes of 10; fetch it anew"
        )
    files = [(file, number) for number, folder in enumerate(folders) for file in sorted(folder.glob("*.JPEG"))]
    if split != "test":
        files = [pair for i, pair in enumerate(files) if (i % 10 == 0) == (split == "validation")]
    return _of_files("imagenette", split, files if split == "train" else _in_turn(files), _THINGS, framing)


BY_NAME: dict[str, Callable[[Path, str, Framing | None], ImageSet]] = {
    "mnist": mnist,
    "cifar10": cifar10,
    "gtsrb": gtsrb,
    "imagenette": imagenette,
}


def takes_size(name: str) -> bool:
    """True for datasets of files of many sizes, which `image_size` may bring to another size than usual."""
    return name in _SIZES


def _track(file: Path) -> str:
    return file.stem.partition("_")[0]


def _in_turn(labelled: Iterable[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The files of every class in turn, so that the first ones speak for all."""
    seen: dict[int, int] = {}
    ranked = []
    for file, number in labelled:
        ranked.append((seen.get(number, 0), number, file))
        seen[number] = seen.get(number, 0) + 1
    return [(file, number) for _, number, file in sorted(ranked)]


def _of_files(
    name: str, split: str, labelled: list[tuple[Path, int]], classes: tuple[str, ...], framing: Framing | None
) -> ImageSet:
    framing = framing or Framing(_SIZES[name])
    labels = torch.tensor([number for _, number in labelled])
    files = tuple(file for file, _ in labelled)
    return ImageSet(name, split, classes, (3, *framing.size), labels, _files=files, _framing=framing)


def _in_memory(name: str, split: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> ImageSet:
    """The split of the test images, or, of all training images, its part."""
    if split != "test":
        kept = slice(-HELD_OUT, None) if split == "validation" else slice(-HELD_OUT)
        images, labels = images[kept], labels[kept]
    channels, height, width = images.shape[1:]
    return ImageSet(name, split, classes, (channels, height, width), labels, _bytes=images)


def _found(dataset: Callable[[Any, bool], Any], name: str, root: Path) -> Any:
    """torchvision's dataset: the files under `root`, or those that it downloads there."""
    from torchvision import datasets  # slow to import

    try:
        try:
            return dataset(datasets, False)
        except RuntimeError:  # not there yet
            return dataset(datasets, True)
    except KeyError as error:
        raise InvalidInput(
            f"data-root is {root}, whose {name} has a folder {error} that is no class of it; remove it"
        ) from error
    except (RuntimeError, URLError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"data-root is {root}, which holds no {name}, and downloading it failed ({reason}); name a folder in "
            "torchvision's layout"
        ) from error

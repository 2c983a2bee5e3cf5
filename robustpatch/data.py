"""Images and labels by name: the sample in the package, torchvision's datasets, a folder of your own images."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from robustpatch.errors import InvalidInput

DATASETS = ("mnist-sample", "mnist", "cifar10", "folder")
SPLITS = ("train", "validation", "test")
_PARTS = ("train", "training", "val", "validation", "valid")  # folders that are no classes
VALIDATION = 5_000  # the last training images: every choice is made on these
_HELD = 2**30  # bytes of a folder's images, decoded, up to which they are kept in memory


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, read in batches. Index i is image i of the split, in the dataset's own order. A
    folder's images are read when first asked for, and kept as bytes where all of them take at most a gigabyte. A file
    that is another when it is read again is refused with `InvalidInput`: what was read of it before may be in use.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    labels: Tensor
    _bytes: Tensor | None = None
    _folder: ImageFolder | None = None
    _resized: bool = False
    _held: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [B,C,H,W] in [0, 1] and labels [B]."""
        index = torch.as_tensor(index, dtype=torch.long)
        return self._pixels(index).to(torch.float32) / 255, self.labels[index]

    def stored(self, i: int) -> bytes:
        """Image i before it is decoded, scaled or cropped: its values in memory, or its file."""
        if self._bytes is not None:
            return self._bytes[i].numpy().tobytes()
        assert self._folder is not None
        path = Path(self._folder.samples[i][0])
        try:
            self._check_same(i)
            return path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error}); mend or remove it") from error

    def _pixels(self, index: Tensor) -> Tensor:
        """Images uint8 [B,C,H,W], from memory by one gather."""
        if self._bytes is not None:
            return self._bytes[index]
        if not self._held:
            if len(self) * math.prod(self.image_shape) > _HELD:
                return torch.stack([self._read(i) for i in index.tolist()])
            self._held[:] = [
                torch.empty(len(self), *self.image_shape, dtype=torch.uint8),
                torch.zeros(len(self)).bool(),
            ]
        pixels, known = self._held
        for i in index[~known[index]].tolist():
            pixels[i] = self._read(i)
            known[i] = True
        return pixels[index]

    def _check_same(self, i: int) -> None:
        """Refuse a file that was written since it was first read."""
        assert self._folder is not None
        path = Path(self._folder.samples[i][0])
        now = path.stat()
        if self._seen.setdefault(i, (now.st_size, now.st_mtime_ns)) != (now.st_size, now.st_mtime_ns):
            raise InvalidInput(f"{path} was written since it was first read; load the images anew")

    def _read(self, i: int) -> Tensor:
        assert self._folder is not None
        path = self._folder.samples[i][0]
        try:
            self._check_same(i)
            image = pil_to_tensor(self._folder.loader(path))
        except OSError as error:  # PIL's UnidentifiedImageError is one
            raise InvalidInput(f"{path} cannot be read as an image ({error}); mend or remove it") from error
        if self._resized:
            size = self.image_shape[1:]
            image = center_crop(resize(image, _covering(image.shape[1:], size), antialias=True), list(size))
        if tuple(image.shape) != self.image_shape:
            raise InvalidInput(
                f"{path} has shape {tuple(image.shape)}, the first image {self.image_shape}; bring all to one size "
                "with --image-size"
            )
        return image


def read_ahead(images: ImageSet, batches: Iterable[Tensor], workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """`images.batch` of each index in turn, the next `workers` of them read meanwhile by as many threads."""
    if workers < 0:
        raise InvalidInput(f"workers is {workers}; give a number of threads, or 0 to read each batch when it is due")
    if workers == 0:
        yield from map(images.batch, batches)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        try:
            for index in batches:
                waiting.append(pool.submit(images.batch, index))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _covering(size: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """`size` scaled so that it just covers `wanted`."""
    scale = max(side / own for own, side in zip(size, wanted, strict=True))
    return [max(side, round(own * scale)) for own, side in zip(size, wanted, strict=True)]


def parse_image_size(text: str) -> tuple[int, int]:
    """Read "224" or "224x320" (height × width). Raises `InvalidInput`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InvalidInput(f"image_size is {text!r}; use 224 or 224x320 (height × width)")
    return int(parts[0]), int(parts[-1])


def named_classes(text: str) -> tuple[str, ...]:
    """Class names from a file with one a line, or from "cat,dog". Raises `InvalidInput` for neither."""
    if "," in text and not Path(text).exists():
        return tuple(part.strip() for part in text.split(","))
    try:
        lines = Path(text).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"classes is {text}, which is no list a,b,c and no text file ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


def default_root() -> Path:
    """$ROBUSTPATCH_DATA, or ~/.cache/robustpatch/data."""
    return Path(os.environ.get("ROBUSTPATCH_DATA", "~/.cache/robustpatch/data")).expanduser()


def load_images(
    name: str,
    root: str | Path | None = None,
    split: str = "test",
    *,
    image_size: tuple[int, int] | None = None,
    channels: int = 3,
    class_names: Sequence[str] | None = None,
) -> ImageSet:
    """The images of one split. "validation" is the last 5,000 training images, "train" what comes before them; of a
    folder, validation is an even sample of at most a tenth.

    - "mnist-sample": the first 500 MNIST test images, inside the package; its one split is "test".
    - "mnist", "cifar10": torchvision's, under `root`; downloaded there when absent.
    - "folder": `root`/test/CLASS/IMAGE (and train), or, to test alone, `root`/CLASS/IMAGE. Test images come from every
      class in turn.

    The last three are for a folder. Its images are all of one size, or brought to `image_size` (height, width): scaled
    to cover it and cropped in the middle. They are read in colour, or with `channels` 1 in grey. Its classes are in
    alphabetical order, or `class_names`, in the order of a model's outputs: of these the folder may hold a few.

    Raises `InvalidInput` for an unknown name or split, and where files are missing.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split is {split!r}; known are {', '.join(SPLITS)}")
    root = Path(root).expanduser() if root is not None else default_root()
    if name == "folder":
        return _folder(root, split, image_size, channels, class_names)
    for option, value in (
        ("image_size", image_size),
        ("channels", None if channels == 3 else channels),
        ("class_names", class_names),
    ):
        if value is not None:
            raise InvalidInput(f"{option} is {value}, but dataset {name} has its own; drop it, or use --dataset folder")
    if name == "mnist-sample":
        if split != "test":
            raise InvalidInput(f'split is {split!r}, but mnist-sample has only "test"; use --dataset mnist')
        with resources.files("robustpatch").joinpath("sample/mnist.npz").open("rb") as file, np.load(file) as sample:
            return _of_bytes(
                name,
                split,
                torch.from_numpy(sample["images"])[:, None],
                torch.from_numpy(sample["labels"]).long(),
                tuple("0123456789"),
            )
    if name == "mnist":
        mnist = _torchvision(MNIST, root, train=split != "test")
        return _part(_of_bytes(name, split, mnist.data[:, None], mnist.targets, tuple("0123456789")), split)
    if name == "cifar10":
        cifar = _torchvision(CIFAR10, root, train=split != "test")
        images = torch.from_numpy(cifar.data).permute(0, 3, 1, 2).contiguous()
        return _part(_of_bytes(name, split, images, torch.tensor(cifar.targets), tuple(cifar.classes)), split)
    raise InvalidInput(f"dataset is {name!r}; known are {', '.join(DATASETS)}")


def named_images(
    name: str,
    root: Path | None,
    split: str = "test",
    *,
    image_size: str | None = None,
    channels: int = 3,
    classes: str | None = None,
) -> ImageSet:
    """`load_images` as command lines name it: sizes as for `parse_image_size`, classes as for `named_classes`."""
    return load_images(
        name,
        root,
        split,
        image_size=None if image_size is None else parse_image_size(image_size),
        channels=channels,
        class_names=None if classes is None else named_classes(classes),
    )


def _of_bytes(name: str, split: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> ImageSet:
    channels, height, width = images.shape[1:]
    return ImageSet(name, split, classes, (channels, height, width), labels, _bytes=images)


def _torchvision(dataset, root: Path, train: bool):
    try:
        return dataset(root, train=train)
    except RuntimeError:
        pass  # not there yet
    try:
        return dataset(root, train=train, download=True)
    except (RuntimeError, URLError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            f"data-root is {root}, which holds no {dataset.__name__}, and downloading it failed ({reason}); "
            "name a folder in torchvision's layout"
        ) from error


def _part(images: ImageSet, split: str) -> ImageSet:
    if split == "test":
        return images
    cut = len(images) - VALIDATION
    kept = slice(cut, None) if split == "validation" else slice(cut)
    assert images._bytes is not None
    return ImageSet(
        images.name, split, images.class_names, images.image_shape, images.labels[kept], _bytes=images._bytes[kept]
    )


def _folder(
    root: Path, split: str, image_size: tuple[int, int] | None, channels: int, class_names: Sequence[str] | None
) -> ImageSet:
    if channels not in (1, 3):
        raise InvalidInput(f"channels is {channels}; images are read in colour (3) or in grey (1)")
    if image_size is not None and min(image_size) < 1:
        raise InvalidInput(f"image_size is {image_size}; give a height and a width of at least 1")
    path = root / ("test" if split == "test" else "train")
    if split == "test" and not path.is_dir():
        path = root
        parts = sorted(part.name for part in root.iterdir() if part.name in _PARTS) if root.is_dir() else []
        if parts:
            raise InvalidInput(
                f"data-root is {root}, which holds {', '.join(parts)} but no test; name the one to test, as in "
                f"{root / parts[-1]}"
            )
    try:
        folder = ImageFolder(str(path), loader=_in_grey if channels == 1 else default_loader)
    except FileNotFoundError as error:
        raise InvalidInput(
            f"data-root is {root}, but there are no images in {path}/CLASS/ ({error}); make one folder for each class"
        ) from error
    names = tuple(folder.classes if class_names is None else class_names)
    unknown = sorted(set(folder.classes) - set(names))
    if unknown or len(set(names)) < len(names):
        what = f"not {', '.join(unknown[:5])}, folders of {path}" if unknown else "one of them twice"
        raise InvalidInput(f"class_names is {', '.join(names[:5])}, … ({len(names)}), {what}; name each class once")
    labels = torch.tensor([names.index(name) for name in folder.classes])[torch.tensor(folder.targets)]
    size = image_size or tuple(pil_to_tensor(folder.loader(folder.samples[0][0])).shape[1:])
    # A folder is sorted by class: so its validation images are an even sample and not the last ones, and its test
    # images are of every class in turn, so that the first of them speak for all.
    order = torch.arange(len(labels))
    if split == "test":
        counts = torch.unique_consecutive(labels, return_counts=True)[1]
        order = torch.cat([torch.arange(int(count)) for count in counts]).argsort(stable=True)
    else:
        held = order % max(2, len(labels) // min(VALIDATION, max(1, len(labels) // 10))) == 0
        order = order[held] if split == "validation" else order[~held]
    folder.samples = [folder.samples[int(i)] for i in order]
    shape = (channels, size[0], size[1])
    return ImageSet("folder", split, names, shape, labels[order], _folder=folder, _resized=image_size is not None)


def _in_grey(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")

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
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST
from torchvision.transforms.v2.functional import center_crop, resize

from robustpatch.cli.text import one_line
from robustpatch.data.folders import look_into
from robustpatch.data.pictures import EXTENSIONS, Unreadable, content, picture
from robustpatch.errors import InvalidInput
from robustpatch.memory import free

DATASETS = ("mnist-sample", "mnist", "cifar10", "folder")
SPLITS = ("train", "validation", "test")
_PARTS = ("train", "training", "val", "validation", "valid", "test", "testing")  # folders that are no classes
VALIDATION = 5_000  # the last training images: every choice is made on these
_LARGEST = 2**13  # side of an image
_MOST_CLASSES = 2**24  # characters of a file of their names
_HELD = 2**30  # bytes of a folder's images, decoded, up to which they are kept in memory


@dataclass(frozen=True)
class ImageSet:
    """Labelled images of one size, read in batches. Index i is image i of the split, in the dataset's own order. A
    folder's images are read when first asked for, and kept as bytes where all of them take at most a gigabyte. A file
    that is another when it is read again is refused with `InvalidInput`: what was read of it before may be in use.
    `left_out` says which files of a folder are not among them, in words, where some are not; `notes` are lines that a
    command says of them when its work begins.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    labels: Tensor
    _bytes: Tensor | None = None
    _files: tuple[Path, ...] | None = None
    _resized: bool = False
    left_out: str | None = None
    notes: tuple[str, ...] = ()
    _held: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)
    _seen: dict[int, tuple[int, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Sequence[int] | Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 [B,C,H,W] in [0, 1] and labels [B]."""
        index = torch.as_tensor(index, dtype=torch.long)
        size, memory = 4 * len(index) * math.prod(self.image_shape), free(torch.device("cpu"))
        if size > memory:
            raise InvalidInput(
                f"{len(index)} images of {self.image_shape} together take {size / 1e9:,.1f} GB of memory, of which "
                f"{memory / 1e9:,.1f} are free; take fewer with --batch-size, or smaller ones with --image-size"
            )
        return self._pixels(index).to(torch.float32) / 255, self.labels[index]

    def stored(self, i: int) -> bytes:
        """Image i before it is decoded, scaled or cropped: its values in memory, or its file."""
        if self._bytes is not None:
            return self._bytes[i].numpy().tobytes()
        path = self._unchanged(i)
        try:
            return content(path)
        except Unreadable as error:
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

    def _unchanged(self, i: int) -> Path:
        """The file of image i; one that was written since it was first read is refused."""
        assert self._files is not None
        path = self._files[i]
        try:
            now = path.stat()
        except OSError as error:
            raise InvalidInput(f"{path} cannot be read ({error}); mend or remove it") from error
        if self._seen.setdefault(i, (now.st_size, now.st_mtime_ns)) != (now.st_size, now.st_mtime_ns):
            raise InvalidInput(f"{path} was written since it was first read; load the images anew")
        return path

    def _read(self, i: int) -> Tensor:
        path = self._unchanged(i)
        try:
            image = picture(path, self.image_shape[0])
        except Unreadable as error:
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
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        raise InvalidInput(f"image_size is {one_line(repr(text), 80)}; use 224 or 224x320 (height × width)")
    size = int(parts[0]), int(parts[-1])
    if not 1 <= min(size) <= max(size) <= _LARGEST:
        raise InvalidInput(f"image_size is {text!r}; give a height and a width of 1 to {_LARGEST}")
    return size


def named_classes(text: str) -> tuple[str, ...]:
    """Class names from a file with one a line, or from "cat,dog". Raises `InvalidInput` for neither."""
    if os.path.isfile(text := os.path.expanduser(text)):  # False for texts that no file can be called, too
        try:
            with open(text, encoding="utf-8-sig") as file:
                names = tuple(line.strip() for line in file.read(_MOST_CLASSES).splitlines() if line.strip())
        except (OSError, ValueError) as error:
            raise InvalidInput(f"classes is {text}, which is no text file ({one_line(error, 200)})") from error
    elif "," in text:
        names = tuple(part.strip() for part in text.split(","))
    else:
        raise InvalidInput(f"classes is {one_line(repr(text), 200)}, which is no list a,b,c and no text file")
    if not names or not all(names):
        raise InvalidInput(
            f"classes is {one_line(repr(text), 200)}, which leaves a class without a name; name each one"
        )
    return names


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
    skip_broken: bool = False,
) -> ImageSet:
    """The images of one split. "validation" is the last 5,000 training images, "train" what comes before them; of a
    folder, validation is an even sample of at most a tenth.

    - "mnist-sample": the first 500 MNIST test images, inside the package; its one split is "test".
    - "mnist", "cifar10": torchvision's, under `root`; downloaded there when absent.
    - "folder": `root`/test/CLASS/IMAGE (and train), or, to test alone, `root`/CLASS/IMAGE. Test images come from every
      class in turn.

    The last four are for a folder. Its images are all of one size, or brought to `image_size` (height, width): scaled
    to cover it and cropped in the middle. They are read as a viewer shows them (`robustpatch.data.pictures`), in
    colour, or with `channels` 1 in grey. Its classes are in alphabetical order, or `class_names`, in the order of a
    model's outputs: of these the folder may hold a few. All of its files are looked at here, so that none fails an hour
    later; those that cannot be used are refused, or with `skip_broken` left out, which `ImageSet.left_out` tells.

    Raises `InvalidInput` for an unknown name or split, and where files are missing or cannot be used.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split is {split!r}; known are {', '.join(SPLITS)}")
    root = Path(root).expanduser() if root is not None else default_root()
    if name == "folder":
        return _folder(root, split, image_size, channels, class_names, skip_broken)
    for option, value in (
        ("image_size", image_size),
        ("channels", None if channels == 3 else channels),
        ("class_names", class_names),
        ("skip_broken", skip_broken or None),
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
    skip_broken: bool = False,
) -> ImageSet:
    """`load_images` as command lines name it: sizes as for `parse_image_size`, classes as for `named_classes`."""
    return load_images(
        name,
        root,
        split,
        image_size=None if image_size is None else parse_image_size(image_size),
        channels=channels,
        class_names=None if classes is None else named_classes(classes),
        skip_broken=skip_broken,
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
    root: Path,
    split: str,
    image_size: tuple[int, int] | None,
    channels: int,
    class_names: Sequence[str] | None,
    skip_broken: bool,
) -> ImageSet:
    if channels not in (1, 3):
        raise InvalidInput(f"channels is {channels}; images are read in colour (3) or in grey (1)")
    if image_size is not None and not 1 <= min(image_size) <= max(image_size) <= _LARGEST:
        raise InvalidInput(f"image_size is {image_size}; give a height and a width of 1 to {_LARGEST}")
    path = _part_of_folder(root, split)
    try:
        folder = look_into(path, resized=image_size is not None)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"data-root is {root}, but there are no images in {path}/CLASS/ ({one_line(error, 200)}); make one folder "
            "for each class"
        ) from error
    if folder.broken and not skip_broken:
        several = any("the first has" in reason for reason in folder.broken.values())
        remedy = "bring all to one size with --image-size, mend" if several else "mend"
        raise InvalidInput(
            f"data-root is {root}, where {folder.what_is_broken(path)}; {remedy} or remove them, or leave them out "
            "with --skip-broken"
        )
    empty = [name for number, name in enumerate(folder.classes) if all(own != number for _, own in folder.files)]
    if not folder.files or (empty and not folder.broken):
        which = f"none in {one_line(', '.join(empty[:5]), 200)}" if empty else "no folder in it"
        raise InvalidInput(
            f"data-root is {root}, but there are no images in {path}/CLASS/ ({which}); make one folder for each class, "
            f"with files that end in {', '.join(EXTENSIONS)}"
        )
    names = tuple(folder.classes if class_names is None else class_names)
    unknown = sorted(set(folder.classes) - set(names))
    if unknown or len(set(names)) < len(names):
        what = f"not {', '.join(unknown[:5])}, folders of {path}" if unknown else "one of them twice"
        raise InvalidInput(
            f"class_names is {one_line(', '.join(names[:5]), 200)}, … ({len(names)}), {one_line(what, 400)}; name each "
            "class once"
        )
    labels = torch.tensor([names.index(folder.classes[number]) for _, number in folder.files])
    # A folder is sorted by class: so its validation images are an even sample and not the last ones, and its test
    # images are of every class in turn, so that the first of them speak for all.
    order = torch.arange(len(labels))
    if split == "test":
        counts = torch.unique_consecutive(labels, return_counts=True)[1]
        order = torch.cat([torch.arange(int(count)) for count in counts]).argsort(stable=True)
    else:
        held = order % max(2, len(labels) // min(VALIDATION, max(1, len(labels) // 10))) == 0
        order = order[held] if split == "validation" else order[~held]
    size = image_size or folder.size
    assert size is not None
    left_out = folder.what_is_broken(path) if folder.broken else None
    notes = [] if left_out is None else [f"left out: {left_out}"]
    notes += [] if folder.what_was_not_decoded is None else [folder.what_was_not_decoded]
    return ImageSet(
        "folder",
        split,
        names,
        (channels, size[0], size[1]),
        labels[order],
        _files=tuple(folder.files[int(i)][0] for i in order),
        _resized=image_size is not None,
        left_out=left_out,
        notes=tuple(notes),
    )


def _part_of_folder(root: Path, split: str) -> Path:
    """Where the images of a split lie. A root whose folders are called like splits is not taken for one of classes."""
    path = root / ("test" if split == "test" else "train")
    try:
        if split != "test" or path.is_dir():
            return path
        inside = sorted(one.name for one in root.iterdir()) if root.is_dir() else []
    except (OSError, ValueError) as error:
        raise InvalidInput(f"data-root is {one_line(root, 200)}, which cannot be read ({one_line(error)})") from error
    parts = [name for name in inside if name.lower() in _PARTS]
    if parts:
        raise InvalidInput(
            f"data-root is {root}, which holds {', '.join(parts)} but no test; name the one to test, as in "
            f"{root / parts[-1]}"
        )
    return root

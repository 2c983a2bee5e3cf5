"""The images of a folder that has a folder for each class, as one split of a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from robustpatch.cli.text import one_line, why_no_text
from robustpatch.data.folder_contents import classes_in, look_into
from robustpatch.data.framing import Framing
from robustpatch.data.image_set import ImageSet
from robustpatch.data.parse import LARGEST_SIDE
from robustpatch.data.pictures import EXTENSIONS
from robustpatch.errors import InvalidInput

VALIDATION = 5_000  # the most images that every choice is made on, taken from the training images
_PARTS = ("train", "training", "val", "validation", "valid", "test", "testing")  # folders that are no classes


def folder_images(
    root: Path, split: str, framing: Framing | None, channels: int, class_names: Sequence[str] | None, skip_broken: bool
) -> ImageSet:
    """One split of the images in `root`; see `load_images`. Raises `InvalidInput`."""
    if channels not in (1, 3):
        raise InvalidInput(f"channels is {channels}; images are read in colour (3) or in grey (1)")
    if framing is not None and not 1 <= min(framing.size) <= max(framing.size) <= LARGEST_SIDE:
        raise InvalidInput(f"image_size is {framing.size}; give a height and a width of 1 to {LARGEST_SIDE}")
    path = _part_of_folder(root, split)
    try:
        folder = look_into(path, resized=framing is not None)
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"data-root is {root}, but there are no images in {path}/CLASS/ ({one_line(error, 200)}); make one folder "
            "for each class"
        ) from error
    for name in folder.classes:
        if reason := why_no_text(name):
            raise InvalidInput(f"data-root is {root}, where the name of the folder {one_line(name, 200)} is {reason}")
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
    apart = _has_validation(root)
    if split == "validation" and apart and class_names is None:
        _check_classes(root, folder.classes)
    names = tuple(folder.classes if class_names is None else class_names)
    unknown = sorted(set(folder.classes) - set(names))
    if unknown or len(set(names)) < len(names):
        what = f"not {', '.join(unknown[:5])}, folders of {path}" if unknown else "one of them twice"
        raise InvalidInput(
            f"class_names is {one_line(', '.join(names[:5]), 200)}, … ({len(names)}), {one_line(what, 400)}; name each "
            "class once"
        )
    labels = torch.tensor([names.index(folder.classes[number]) for _, number in folder.files])
    # A folder is sorted by class: so validation images taken from the training images are an even sample of them and
    # not the last ones, and those of a folder of their own are of every class in turn, so that the first speak for all.
    order = torch.arange(len(labels))
    if split == "test" or (split == "validation" and apart):
        counts = torch.unique_consecutive(labels, return_counts=True)[1]
        order = torch.cat([torch.arange(int(count)) for count in counts]).argsort(stable=True)
    elif not apart:
        held = order % max(2, len(labels) // min(VALIDATION, max(1, len(labels) // 10))) == 0
        order = order[held] if split == "validation" else order[~held]
    size = folder.size if framing is None else framing.size
    assert size is not None
    left_out = folder.what_is_broken(path) if folder.broken else None
    notes = [] if left_out is None else [f"left out: {left_out}"]
    notes += [] if folder.what_was_not_decoded is None else [folder.what_was_not_decoded]
    if class_names is None and all(name.isdecimal() for name in names) and sorted(names, key=_number) != [*names]:
        some = one_line(", ".join(names[:5]), 200) + ", …" * (len(names) > 5)
        notes.append(
            f"the classes of the folder are in the order of texts ({some}); where the model's outputs are in another, "
            "such as that of the numbers, name them in it with --classes"
        )
    return ImageSet(
        "folder",
        split,
        names,
        (channels, size[0], size[1]),
        labels[order],
        _files=tuple(folder.files[int(i)][0] for i in order),
        _framing=framing,
        left_out=left_out,
        notes=tuple(notes),
    )


def _number(digits: str) -> tuple[int, str]:
    """A key by which texts of digits are in the order of their numbers, however long."""
    significant = digits.lstrip("0")
    return len(significant), significant


def _has_validation(root: Path) -> bool:
    return os.path.isdir(root / "validation")  # False for texts that no folder can be called, too


def _check_classes(root: Path, classes: list[str]) -> None:
    """Refuse validation images of other classes than the training images: their numbers would mean others."""
    try:
        trained = classes_in(root / "train")
    except OSError as error:
        raise InvalidInput(f"data-root is {root}, with a validation but no train ({one_line(error)})") from error
    other = sorted({*trained} ^ {*classes})
    if other:
        raise InvalidInput(
            f"data-root is {root}, where {one_line(', '.join(other[:5]), 200)} is a class of either train or "
            "validation alone; make a folder of each class in both"
        )


def _part_of_folder(root: Path, split: str) -> Path:
    """The folder of a split's images. A root whose folders are called like splits is not taken for one of classes."""
    if split == "validation" and _has_validation(root):
        return root / "validation"
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

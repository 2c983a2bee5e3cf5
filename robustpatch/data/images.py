"""Images and labels by name: the sample in the package, torchvision's datasets, a folder of your own images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from pydantic import Strict

from robustpatch.cli.arguments import completing
from robustpatch.data.framing import Framing
from robustpatch.data.image_folder import folder_images
from robustpatch.data.image_set import ImageSet
from robustpatch.data.parse import named_classes, parse_image_size
from robustpatch.data.torchvision_sets import BY_NAME, takes_size
from robustpatch.errors import InvalidInput
from robustpatch.options import options
from robustpatch.plugins import load_plugin, plugin_names

DATASETS = ("mnist-sample", *BY_NAME, "folder", *plugin_names("datasets"))
SPLITS = ("train", "validation", "test")


def default_root() -> Path:
    """$ROBUSTPATCH_DATA, or ~/.cache/robustpatch/data."""
    return Path(os.path.expanduser(os.environ.get("ROBUSTPATCH_DATA", "~/.cache/robustpatch/data")))


def load_images(
    name: str,
    root: str | Path | None = None,
    split: str = "test",
    *,
    image_size: tuple[int, int] | Framing | None = None,
    channels: int = 3,
    class_names: Sequence[str] | None = None,
    skip_broken: bool = False,
) -> ImageSet:
    """The images of one split. Of MNIST and CIFAR-10, "validation" is the last 5,000 training images, "train" those
    before them; of GTSRB, every eighth track, whole; of Imagenette, every tenth training image; of a folder,
    `root`/validation/CLASS, where there is one, or an even sample of at most a tenth.

    - "mnist-sample": the first 500 MNIST test images, inside the package; its one split is "test".
    - "mnist", "cifar10", "gtsrb", "imagenette": torchvision's, under `root`; downloaded there when absent.
    - "folder": `root`/test/CLASS/IMAGE (and train, and validation, of the same classes), or, to test alone,
      `root`/CLASS/IMAGE. Test images come from every class in turn.
    - any other name: the dataset of another installed package (`robustpatch.plugins`), a function of `root`, `split`
      and `image_size`.

    The last four arguments are for a folder; GTSRB and Imagenette take `image_size` too. A folder's images are all of
    one size, or brought to `image_size`: a `Framing`, or (height, width) to be covered and cropped in the middle. They
    are read as a viewer shows them (`robustpatch.data.pictures`), in colour, or with `channels` 1 in grey. Its classes
    are in alphabetical order, or `class_names`, in the order of a model's outputs: of these the folder may hold a few.
    All of its files are looked at here, so that none fails an hour later; those that cannot be used are refused, or
    with `skip_broken` left out, which `ImageSet.left_out` tells.

    Raises `InvalidInput` for an unknown name or split, and where files are missing or cannot be used.
    """
    if split not in SPLITS:
        raise InvalidInput(f"split is {split!r}; known are {', '.join(SPLITS)}")
    framing = Framing(image_size) if isinstance(image_size, tuple) else image_size
    root = default_root() if root is None else Path(os.path.expanduser(root))
    if name == "folder":
        return folder_images(root, split, framing, channels, class_names, skip_broken)
    plugin = None if name in DATASETS[: 2 + len(BY_NAME)] else load_plugin("datasets", name)
    for option, value in (
        ("image_size", None if takes_size(name) or plugin or framing is None else framing.size),
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
            images, labels = (torch.from_numpy(sample[what]) for what in ("images", "labels"))
            classes = tuple("0123456789")
            return ImageSet(name, split, classes, (1, 28, 28), labels.long(), _bytes=images[:, None])
    if plugin is None and name not in BY_NAME:
        raise InvalidInput(f"dataset is {name!r}; known are {', '.join(DATASETS)}")
    if plugin is not None:
        return plugin(root, split, None if framing is None else framing.size)
    return BY_NAME[name](root, split, framing)


_PANEL = "Images"
Dataset = Annotated[
    str,
    typer.Option(
        help="mnist-sample (in the package, not to train on), mnist, cifar10, gtsrb, imagenette or folder.",
        rich_help_panel=_PANEL,
        **completing(*DATASETS),
    ),
]
DataRoot = Annotated[
    Annotated[Path, Strict(False)],
    typer.Option(help="Folder of the data, of your own as CLASS/IMAGE.", rich_help_panel=_PANEL),
]
ImageSize = Annotated[
    str,
    typer.Option(
        help="Bring the images of a folder, gtsrb or imagenette to one size, cropped in the middle: 224 or 224x320 "
        "(height × width).",
        rich_help_panel=_PANEL,
    ),
]
Channels = Annotated[int, typer.Option(help="Of a folder: 3, colour, or 1, grey.", rich_help_panel=_PANEL)]
ClassNames = Annotated[
    str,
    typer.Option(
        help="Names of a folder's classes in the order of the model's outputs: a file with one a line, or a,b,c.",
        rich_help_panel=_PANEL,
    ),
]
SkipBroken = Annotated[
    bool, typer.Option(help="Leave out a folder's files that cannot be used.", rich_help_panel=_PANEL)
]


@options
class DataOptions:
    """The images of a command line or a file: a dataset by name, and what is to be known of a folder's images."""

    dataset: Dataset = "mnist-sample"
    data_root: Annotated[DataRoot | None, "$ROBUSTPATCH_DATA"] = None
    image_size: ImageSize | None = None
    channels: Channels = 3
    classes: Annotated[ClassNames | None, "alphabetical"] = None
    skip_broken: SkipBroken = False

    def load(
        self, split: str = "test", *, framing: Framing | None = None, class_names: Sequence[str] | None = None
    ) -> ImageSet:
        """One split of the images, by `load_images`; where the options say nothing of them, as `framing` and
        `class_names` say.
        """
        return load_images(
            self.dataset,
            self.data_root,
            split,
            image_size=framing if self.image_size is None else parse_image_size(self.image_size),
            channels=self.channels,
            class_names=class_names if self.classes is None else named_classes(self.classes),
            skip_broken=self.skip_broken,
        )


@options
class TrainingData(DataOptions):
    """The images of a training, which the sample in the package is too few for."""

    dataset: Dataset = "mnist"


def named_images(name: str, root: Path | None, split: str = "test", **options: Any) -> ImageSet:
    """The images of `DataOptions`."""
    return DataOptions(dataset=name, data_root=root, **options).load(split)

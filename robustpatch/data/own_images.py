"""Images of one's own, from memory: tensors, arrays, a torch dataset or its loader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput

Images = ImageSet | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]


def as_image_set(
    images: Images, *, class_names: Sequence[str] | None = None, name: str = "images", split: str = "test"
) -> ImageSet:
    """Images and labels as the evaluator reads them, all in memory; an `ImageSet` is returned as it is.

    - A pair: images [N,C,H,W], uint8, or floats in [0, 1] that are kept to the bit, and labels [N]; tensors or arrays.
    - A `Dataset` of pairs (image, label), an image being a PIL image or [C,H,W], or a `DataLoader` of batches of them,
      in its order. What its transforms do to images is what an attacker changes after: leave normalisation to the
      model.

    `class_names`: the dataset's `classes`, or numbers, where they are not given. Raises `InvalidInput` for images of
    several sizes, values outside of [0, 1], and labels that are no classes.
    """
    if isinstance(images, ImageSet):
        return images
    known = getattr(images, "dataset", images)
    x, y = images if isinstance(images, tuple) else _gathered(images)
    pixels, labels = torch.as_tensor(x), torch.as_tensor(y)
    if pixels.ndim != 4 or labels.shape != pixels.shape[:1] or not len(pixels):
        raise InvalidInput(
            f"images have shape {tuple(pixels.shape)} and labels {tuple(labels.shape)}; give [N,C,H,W] and [N]"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool or int(labels.min()) < 0:
        raise InvalidInput(f"labels are {labels.dtype} from {labels.min()}; give the numbers of classes, from 0 on")
    names = class_names or getattr(known, "classes", None) or [str(i) for i in range(int(labels.max()) + 1)]
    if int(labels.max()) >= len(names):
        raise InvalidInput(f"labels go up to {int(labels.max())}, but class_names has {len(names)}; name all classes")
    if pixels.dtype != torch.uint8:
        pixels = pixels.to(torch.float32)
        if not bool((pixels.amin() >= 0) & (pixels.amax() <= 1)):  # True for NaN, too
            raise InvalidInput(
                f"images have values from {pixels.min():g} to {pixels.max():g}; give uint8, or floats in [0, 1]: let "
                "the model normalise them"
            )
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return ImageSet(name, split, tuple(map(str, names)), shape, labels.long().cpu(), _bytes=pixels.contiguous().cpu())


def _gathered(images: Dataset[Any] | DataLoader[Any]) -> tuple[Tensor, Tensor]:
    x: list[Tensor] = []
    y: list[Tensor] = []
    for image, label in _batches(images):
        if x and image.shape[1:] != x[0].shape[1:]:
            raise InvalidInput(
                f"images have shapes {tuple(x[0].shape[1:])} and {tuple(image.shape[1:])}; bring all to one size"
            )
        x.append(image)
        y.append(label)
    return torch.cat(x or [torch.zeros(0)]), torch.cat(y or [torch.zeros(0)])


def _batches(images: Dataset[Any] | DataLoader[Any]) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(images, DataLoader):
        for x, y in images:
            yield torch.as_tensor(x), torch.as_tensor(y)
        return
    for i in range(len(images)):  # type: ignore[arg-type]  datasets without a length raise TypeError here
        image, label = images[i]
        pixels = torch.as_tensor(image) if isinstance(image, Tensor | np.ndarray) else _of_pil(image)
        yield pixels[None], torch.as_tensor(label)[None]


def _of_pil(image: Any) -> Tensor:
    from torchvision.transforms.v2.functional import pil_to_tensor  # slow to import

    return pil_to_tensor(image)

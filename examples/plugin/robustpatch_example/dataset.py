"""--dataset bars: drawn images of a bar, upright or lying, for a first look at anything."""

import torch

from robustpatch.data import ImageSet, as_image_set


def bars(root, split: str, image_size) -> ImageSet:
    """200 images [1,H,W] of a split, the same each time; nothing is read from `root`."""
    height, width = image_size or (16, 16)
    generator = torch.Generator().manual_seed(["train", "validation", "test"].index(split))
    images = torch.rand(200, 1, height, width, generator=generator) / 4
    labels = torch.arange(200) % 2
    for image, label in zip(images, labels, strict=True):
        at = int(torch.randint(min(height, width) - 2, (), generator=generator))
        line = image[:, :, at : at + 2] if label == 0 else image[:, at : at + 2]
        line += 0.7
    return as_image_set((images, labels), class_names=("upright", "lying"), name="bars", split=split)

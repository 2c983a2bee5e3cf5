"""Images and labels: shipped, from torchvision, or from a folder of pictures."""

from robustpatch.data.images import ImageSet, load_images

__all__ = ["ImageSet", "load_images"]

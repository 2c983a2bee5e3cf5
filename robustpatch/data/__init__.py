"""Images and labels: shipped, from torchvision, or from a folder of pictures."""

from robustpatch.data.image_set import ImageSet
from robustpatch.data.images import load_images

__all__ = ["ImageSet", "load_images"]

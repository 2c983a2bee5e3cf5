"""Images and labels: shipped, from torchvision, or from a folder of pictures."""

from robustpatch.data.image_set import ImageSet
from robustpatch.data.images import load_images
from robustpatch.data.own_images import as_image_set

__all__ = ["ImageSet", "as_image_set", "load_images"]

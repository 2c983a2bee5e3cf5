"""The size and the classes of a folder's images, as command lines name them."""

from __future__ import annotations

import os

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

LARGEST_SIDE = 2**13  # of an image
_MOST_CLASSES = 2**24  # characters of a file of their names


def parse_image_size(text: str) -> tuple[int, int]:
    """Read "224" or "224x320" (height × width). Raises `InvalidInput`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        raise InvalidInput(f"image_size is {one_line(repr(text), 80)}; use 224 or 224x320 (height × width)")
    size = int(parts[0]), int(parts[-1])
    if not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise InvalidInput(f"image_size is {text!r}; give a height and a width of 1 to {LARGEST_SIDE}")
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

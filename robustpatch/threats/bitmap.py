"""Sets of pixels as text: "HxW/BASE64" of the bits in row-major order; the same set has one text on every machine."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from robustpatch.cli.text import one_line
from robustpatch.data.pictures import Unreadable, picture
from robustpatch.errors import InvalidInput

MOST_BITS = 2**26  # of one bitmap: 8 MiB packed
_FORM = re.compile(r"(\d{1,5}(?:x\d{1,5}){1,2})/([A-Za-z0-9_-]*)")


def pack(pixels: Bool[Tensor, "..."] | np.ndarray) -> str:
    """Returns the text of pixels [H,W], or of several sets [n,H,W]. Raises `InvalidInput` for more than 2^26 bits."""
    array = np.asarray(pixels.cpu() if isinstance(pixels, Tensor) else pixels)
    if array.dtype != np.bool_ or array.ndim not in (2, 3):
        raise InvalidInput(
            f"pixels have shape {array.shape} and type {array.dtype}; give booleans [H,W], or [n,H,W] of several sets"
        )
    _check_size(array.shape)
    bits = base64.urlsafe_b64encode(np.packbits(array).tobytes()).decode().rstrip("=")
    return f"{'x'.join(map(str, array.shape))}/{bits}"


@lru_cache(maxsize=256)
def unpack(text: str, dimensions: int = 2) -> np.ndarray:
    """Returns the read-only array that `pack` wrote. Raises `InvalidInput` for any other text."""
    match = _FORM.fullmatch(text)
    shape = tuple(map(int, match[1].split("x"))) if match else ()
    if match is None or len(shape) != dimensions:
        sizes = "HxW" if dimensions == 2 else "nxHxW"
        raise InvalidInput(f"pixels are {one_line(text, 60)}; give {sizes}/BASE64, as `pack` writes it")
    _check_size(shape)
    try:
        packed = base64.b64decode(match[2] + "=" * (-len(match[2]) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"pixels are {one_line(text, 60)}, which is no base64: {error}") from error
    if len(packed) != -(-prod(shape) // 8):
        raise InvalidInput(f"pixels {match[1]} take {-(-prod(shape) // 8)} bytes, and {len(packed)} are given")
    array = np.unpackbits(np.frombuffer(packed, np.uint8), count=prod(shape)).astype(np.bool_).reshape(shape)
    if pack(array) != text:
        raise InvalidInput(f"pixels are {one_line(text, 60)}, which is not how `pack` writes these")
    array.flags.writeable = False
    return array


def is_packed(text: str) -> bool:
    """Tell whether the text looks like what `pack` writes, rather than the name of a file."""
    return _FORM.fullmatch(text) is not None


def black_and_white(path: str) -> Bool[Tensor, "H W"]:
    """Returns the white pixels of a picture. Raises `InvalidInput` for one with other colours than black and white."""
    try:
        values = picture(Path(path), channels=1)[0]
    except (Unreadable, ValueError) as error:
        raise InvalidInput(f"picture {one_line(path, 200)!r} cannot be read: {error}") from error
    grey = ((values > 0) & (values < 255)).nonzero()
    if len(grey):
        row, column = grey[0].tolist()
        raise InvalidInput(
            f"picture {one_line(path, 200)!r} is grey ({int(values[row, column])}) at row {row}, column {column}; "
            "make every pixel black (0) or white (255, part of the patch)"
        )
    return values == 255


def check_name(name: str) -> None:
    """Refuse a name that would read as several patches in a threat's text."""
    if re.search(r"[,&\n]", name):
        raise InvalidInput(f"patch name is {one_line(name, 80)!r}; rename the file: no comma, no ampersand")


def as_tensor(array: np.ndarray) -> Bool[Tensor, "..."]:
    """Returns a tensor of its own with these pixels."""
    return torch.from_numpy(array.copy())


def _check_size(shape: Sequence[int]) -> None:
    if 0 in shape or prod(shape) > MOST_BITS:
        raise InvalidInput(f"pixels have shape {'x'.join(map(str, shape))}; give between 1 and {MOST_BITS} of them")

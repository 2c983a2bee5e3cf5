"""One picture from a file that anybody may have made, as a viewer shows it, or refused by name."""

from __future__ import annotations

import os
import threading
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from stat import S_ISREG

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustpatch.cli.text import one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")  # whatever a file is called: none starts a program
MOST_PIXELS, MOST_BYTES = 2**26, 2**28
_ENDS, _TAIL = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}, 2**16  # what comes last, but for what cameras put behind it
_GREY = ("1", "L", "LA", "La")
_KNOWN = (*_GREY, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_PNG = b"\x89PNG\r\n\x1a\n"
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width is shown as a height
_opening = threading.Lock()  # while a filter of warnings, which all threads share, is another


class Unreadable(ValueError):
    """A file is no picture that can be read; the message says why in a few words."""


def content(path: Path) -> bytes:
    """The file's bytes. Raises `Unreadable` for what is no regular file (none is waited for) or too large."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not S_ISREG(about.st_mode):
                raise Unreadable("no regular file")
            if about.st_size > MOST_BYTES:
                raise Unreadable(f"{about.st_size:,} bytes; at most {MOST_BYTES:,} are read")
            return file.read()
    except OSError as error:
        broken = path.is_symlink() and not os.path.lexists(os.path.realpath(path))
        raise Unreadable("a link to nothing" if broken else one_line(error.strerror or error)) from error


def look(path: Path) -> tuple[int, int]:
    """Height and width as shown, without decoding. Raises `Unreadable`, as `picture` would for the same header, for a
    PNG of which a checksum is wrong, and for a PNG or JPEG whose end is missing, as of a download that was cut short.
    """
    data = content(path)
    with _opened(data) as image:
        width, height = image.size
        if image.format in _ENDS and _ENDS[image.format] not in data[-_TAIL:]:
            raise Unreadable("its end is missing")
        if image.format == "PNG":
            _check_sums(data)
        turned = _orientation(image) in _SIDEWAYS and image.format != "TIFF"  # whose size is told as it is shown
        return (width, height) if turned else (height, width)


def picture(path: Path, channels: int) -> Tensor:
    """The picture, uint8 [C,H,W], in colour (3) or in grey (1): turned as its EXIF orientation says, laid on white
    where it is transparent, 16 bits scaled to 8. Of several frames it is the first; colour profiles are not applied.

    Raises `Unreadable` for another format than `FORMATS`, floating-point and 32-bit pixels, more than `MOST_PIXELS`,
    and whatever its decoder refuses.
    """
    with _opened(content(path)) as image:
        try:
            image.load()
            upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
            shown = _in_sixteen_bits(upright) if upright.mode.startswith("I") else _on_white(upright)
            values = np.asarray(shown.convert("L" if channels == 1 else "RGB"))
        except Exception as error:  # decoders fail in any way
            raise Unreadable(one_line(error or type(error).__name__, 120)) from error
    return torch.from_numpy(values.reshape(*values.shape[:2], -1).copy()).permute(2, 0, 1).contiguous()


def _opened(data: bytes) -> Image.Image:
    """The picture, its header read and found to be of a kind that can be shown."""
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            Image.init()  # so that formats are known by their names; one that this Pillow lacks is not asked for
            image = Image.open(BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Unreadable(f"more than {MOST_PIXELS:,} pixels") from error
    except Exception as error:
        what = "empty" if not data else f"none of the formats {', '.join(FORMATS)}, or damaged"
        raise Unreadable(what) from error
    width, height = image.size
    reason = None
    if width * height > MOST_PIXELS or not width * height:
        reason = f"{width:,}x{height:,} pixels; at most {MOST_PIXELS:,} are read"
    elif image.mode == "F":
        reason = "floating-point pixels, whose black and white it does not say; save it with 8 or 16 bits"
    elif image.mode.startswith("I") and not _has_sixteen_bits(image):
        reason = f"pixels of other than 8 or 16 bits (mode {image.mode}); save it with 8 or 16"
    elif not image.mode.startswith("I") and image.mode not in _KNOWN:
        reason = f"pixels of the mode {image.mode}; save it in grey or RGB"
    if reason is not None:
        image.close()
        raise Unreadable(reason)
    return image


def _check_sums(data: bytes) -> None:
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        if end > len(data) or zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise Unreadable("a checksum of it is wrong")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end


def _orientation(image: Image.Image) -> int:
    """EXIF's number, 1 to 8; 1, upright, where it says none or its EXIF data is damaged."""
    try:
        found = image.getexif().get(0x0112, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def _has_sixteen_bits(image: Image.Image) -> bool:
    if image.mode == "I":  # four bytes each, of which these formats fill two, scaled to all of their range
        return image.format in ("PNG", "PPM")
    bits = image.tag_v2.get(258, (16,)) if image.format == "TIFF" else (16,)  # type: ignore[attr-defined]
    return image.mode.startswith("I;16") and tuple(bits) == (16,)


def _in_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    if isinstance(image.info.get("transparency"), int):
        values = np.where(values == image.info["transparency"], 65535, values)
    return Image.fromarray(((values.clip(0, 65535) * 255 + 32767) // 65535).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode[-1:] not in "Aa" and "transparency" not in image.info:
        return image
    whole = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert(
        "L" if image.mode in _GREY else "RGB"
    )

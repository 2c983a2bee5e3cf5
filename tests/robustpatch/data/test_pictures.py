"""Pictures are read as a viewer shows them, or refused by name; a folder is looked at before any work."""

from __future__ import annotations

import os
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from robustpatch.data.images import load_images
from robustpatch.data.parse import named_classes, parse_image_size
from robustpatch.data.pictures import MOST_PIXELS, Unreadable, content, look, picture
from robustpatch.errors import InvalidInput
from tests.forbidding import forbidden

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint16), (8, 1))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, whatever they say."""
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int, bits: int = 8, colour: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)


PIXELS = (b"IDAT", zlib.compress(bytes(4 * 5)))
END = (b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    held = BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG", "WEBP"])
def test_orientation(orientation, kind, tmp_path):
    """Turned and mirrored as viewers do, in the header's size too. (`exif_transpose` is Pillow's own.)"""
    values = np.zeros((16, 24, 3), np.uint8)
    values[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(saved(Image.fromarray(values), kind, exif=exif))
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = picture(path, 3).permute(1, 2, 0).numpy()
    assert np.array_equal(found, shown)
    assert look(path) == found.shape[:2] == ((16, 24) if orientation < 5 else (24, 16))


def test_sixteen_bits_are_rounded(tmp_path):
    """To the nearest of 256 levels, 257 apart; the larger half of each step goes up."""
    values = np.array([[0, 128, 129, 385, 386, 32767, 32768, 65406, 65407, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "levels.png")
    assert picture(tmp_path / "levels.png", 1).flatten().tolist() == [0, 0, 1, 1, 2, 127, 128, 254, 255, 255]


@pytest.mark.parametrize("bits", ["16 bits", "big TIFF", "little TIFF", "PGM"])
def test_sixteen_bits_are_scaled(bits, tmp_path):
    """The 64 levels of a ramp from black to white stay, each at its own grey."""
    path, wide = tmp_path / "a.png", RAMP * 257
    if bits == "16 bits":
        Image.fromarray(wide).save(path, "PNG")
    elif bits == "PGM":
        path.write_bytes(b"P5 64 8 65535\n" + wide.astype(">u2").tobytes())
    else:
        Image.fromarray(wide.astype(">u2" if bits.startswith("big") else "<u2")).save(path, "TIFF")
    for channels in (1, 3):
        found = picture(path, channels)
        assert torch.equal(found, torch.from_numpy(RAMP.astype(np.uint8)).expand(channels, -1, -1))


def test_transparency_is_laid_on_white(tmp_path):
    """By an alpha channel, a palette's, a key's; what is hidden under a transparent pixel is not seen."""
    path, white = tmp_path / "a.png", torch.full((3, 2, 2), 255, dtype=torch.uint8)
    for mode, hidden in (("RGBA", (10, 20, 30, 0)), ("LA", (10, 0))):
        Image.new(mode, (2, 2), hidden).save(path)
        assert torch.equal(picture(path, 3), white)
        assert torch.equal(picture(path, 1), white[:1])
    Image.new("RGBA", (2, 2), (0, 100, 200, 51)).save(path)
    assert picture(path, 3)[:, 0, 0].tolist() == [204, 224, 244]
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(path, transparency=1)
    assert torch.equal(picture(path, 3), white)
    Image.new("RGB", (2, 2), (1, 2, 3)).save(path, transparency=(1, 2, 3))
    assert torch.equal(picture(path, 3), white)
    Image.new("RGBA", (2, 2), (1, 2, 3, 255)).save(path)
    assert picture(path, 3)[:, 1, 1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_other_modes(mode, tmp_path):
    """As Pillow converts them."""
    path = tmp_path / "a.tif"
    values = Image.fromarray(np.arange(0, 240, 5, dtype=np.uint8).reshape(4, 4, 3)).convert(mode)
    values.save(path)
    assert torch.equal(picture(path, 3), torch.from_numpy(np.array(values.convert("RGB"))).permute(2, 0, 1))


BAD = {
    "postscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "none of the formats",
    ),
    "empty": (b"", "empty"),
    "page": (b"<html>404</html>", "none of the formats"),
    "gif": (saved(Image.new("L", (4, 5)), "GIF"), "none of the formats"),
    "icon": (saved(Image.new("RGBA", (16, 16)), "ICO"), "none of the formats"),
    "float": (saved(Image.fromarray(RAMP.astype(np.float32) / 256), "TIFF"), "floating-point pixels"),
    "32 bits": (saved(Image.fromarray(RAMP.astype(np.int32)), "TIFF"), "other than 8 or 16 bits"),
    "lab": (saved(Image.new("LAB", (4, 4)), "TIFF"), "pixels of the mode LAB"),
    "pixels": (png(header(100_000, 100_000), PIXELS, END), "more than 67,108,864 pixels"),
    "a few too many": (png(header(8_193, 8_192), PIXELS, END), "8,193x8,192 pixels; at most"),
    "no pixels": (png(header(0, 4), PIXELS, END), "."),
    "cut off": (saved(Image.effect_noise((64, 64), 90), "PNG")[:-900], "."),
    "text": (png(header(4, 5), (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**22))), PIXELS, END), "."),
    "profile": (png(header(4, 5), (b"iCCP", b"k\0\0" + zlib.compress(bytes(2**22))), PIXELS, END), "."),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture(name, tmp_path):
    """Refused in a few words, by the header or when it is decoded, without a program, a socket or a warning."""
    data, why = BAD[name]
    path = tmp_path / "a" / "0.png"
    path.parent.mkdir()
    path.write_bytes(data)
    with forbidden() as attempts:
        with pytest.raises(Unreadable, match=why) as refused:
            picture(path, 3)
        with pytest.raises(InvalidInput, match=rf"1 of 1 pictures cannot be used: a/0\.png \(.*{why}.*--skip-broken"):
            load_images("folder", tmp_path)
    assert attempts == []
    assert len(str(refused.value)) < 200


def test_what_is_no_file(tmp_path):
    """Pipes are not waited for, devices not read; links that loop or lead nowhere, folders called like pictures."""
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("L", (4, 4)).save(folder / "0.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "self.png").symlink_to("self.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "in.png").mkdir()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(Unreadable, match="no regular file"):  # a test that waits here has found a fault
        content(folder / "pipe.png")
    with pytest.raises(InvalidInput) as refused:
        load_images("folder", tmp_path)
    for told in (
        "5 of 6 pictures cannot be used",
        "a/pipe.png (no regular file)",
        "a/zero.png (no regular file)",
        "a/self.png (Too many levels of symbolic links)",
        "a/gone.png (a link to nothing)",
        "a/loop (a link that leads back to a folder it is in)",
    ):
        assert told in str(refused.value)
    left = load_images("folder", tmp_path, skip_broken=True)
    assert len(left) == 1
    assert left.left_out is not None
    assert left.left_out.startswith("5 of 6 pictures cannot be used: ")


def test_every_file_is_looked_at_before_any_work(tmp_path):
    """The last is broken, and of another one the end is missing: both are named, ten at most, and can be left out."""
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.effect_noise((8, 6), 60 + i).save(tmp_path / name / f"{i}.png")
    whole = load_images("folder", tmp_path)
    assert (len(whole), whole.left_out) == (16, None)
    (tmp_path / "dog" / "7.png").write_bytes(b"not a picture")
    cut = tmp_path / "cat" / "3.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    with pytest.raises(InvalidInput, match=r"2 of 16 pictures cannot be used: cat/3\.png \(.*; dog/7\.png \(none of"):
        load_images("folder", tmp_path)
    left = load_images("folder", tmp_path, skip_broken=True)
    assert left.batch(range(len(left)))[0].shape == (14, 3, 6, 8)
    Image.new("L", (9, 9)).save(tmp_path / "dog" / "5.png")
    with pytest.raises(InvalidInput, match=r"dog/5\.png \(9x9 pixels, the first has 6x8\).*bring all to one size"):
        load_images("folder", tmp_path)
    assert len(load_images("folder", tmp_path, skip_broken=True)) == 13
    assert len(load_images("folder", tmp_path, skip_broken=True, image_size=(6, 8))) == 14
    for i in range(8):
        for name in ("cat", "dog"):
            (tmp_path / name / f"{i}.png").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"16 of 16 pictures cannot be used: .*; and 6 more; mend or remove"):
        load_images("folder", tmp_path)
    with pytest.raises(InvalidInput, match="there are no images in"):
        load_images("folder", tmp_path, skip_broken=True)
    with pytest.raises(InvalidInput, match="skip_broken is True, but dataset mnist-sample has its own"):
        load_images("mnist-sample", skip_broken=True)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    """Files that notebooks and archives leave are passed over, and those of other endings; inner folders are read."""
    for place in ("a", "a/deep/er", ".ipynb_checkpoints", "a/.thumbnails"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / place / "0.png")
    (tmp_path / "a" / "._0.png").write_bytes(b"\0\5\26\7Mac OS X")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    (tmp_path / "README.md").write_text("no class")
    images = load_images("folder", tmp_path)
    assert (images.class_names, len(images)) == (("a",), 2)


@pytest.mark.parametrize("name", ["Train", "VAL", "validation"])
def test_splits_are_no_classes(name, tmp_path):
    """However they are written."""
    (tmp_path / name / "a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / name / "a" / "0.png")
    with pytest.raises(InvalidInput, match=f"which holds {name} but no test; name the one to test"):
        load_images("folder", tmp_path)


def test_lists_of_classes(tmp_path):
    """Longer than a file's name can be, with a byte-order mark, of nothing, and what is no file."""
    many = [f"class number {i}" for i in range(100)]
    assert named_classes(",".join(many)) == tuple(many)
    (tmp_path / "list.txt").write_text("\ufeffcat\n\n dog \n", encoding="utf-8")
    assert named_classes(str(tmp_path / "list.txt")) == ("cat", "dog")
    (tmp_path / "empty.txt").write_text("\n")
    for text in (
        "",
        "cat",
        "cat,,dog",
        ",",
        "\0",
        "x" * 5_000,
        "/dev/zero",
        str(tmp_path),
        str(tmp_path / "empty.txt"),
    ):
        with pytest.raises(InvalidInput, match="classes is"):
            named_classes(text)


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "9" * 5_000, "8x", "8x8x8", "1e3", "²", "8193", "100000000x1"])
def test_sizes_of_images(text):
    with pytest.raises(InvalidInput, match="image_size is"):
        parse_image_size(text)


def test_a_photo_with_all_that_cameras_write(tmp_path):
    """A comment, a profile, a thumbnail, damaged EXIF data: a picture all the same."""
    info, path = PngInfo(), tmp_path / "a.png"
    info.add_text("Comment", "x" * 1_000, zip=True)
    Image.new("RGB", (4, 5), (1, 2, 3)).save(path, pnginfo=info, icc_profile=bytes(500))
    assert picture(path, 3)[:, 0, 0].tolist() == [1, 2, 3]
    path.write_bytes(saved(Image.new("RGB", (4, 5), (9, 9, 9)), "JPEG", exif=b"Exif\0\0nothing of TIFF's"))
    assert picture(path, 3).shape == (3, 5, 4)
    assert MOST_PIXELS == 2**26

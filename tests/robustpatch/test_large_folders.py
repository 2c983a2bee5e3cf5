"""Folders that are too large to be decoded beforehand, and pictures that are too large to be held."""

from __future__ import annotations

import io
import tracemalloc

import pytest
from PIL import Image

from robustpatch.data.folder_contents import look_into
from robustpatch.data.images import load_images
from robustpatch.data.pictures import Unreadable, look
from robustpatch.errors import InvalidInput


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(8):
            kind = "jpg" if i % 2 else "png"
            Image.effect_noise((16, 16), 60 + i).save(tmp_path / name / f"{i}.{kind}")
    return tmp_path


def noise(kind: str, **options) -> bytes:
    content = io.BytesIO()
    Image.effect_noise((40, 40), 60).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_was_cut_short_is_known_without_decoding(kind, tmp_path):
    """Of any length; what cameras write behind the picture is no fault."""
    whole, path = noise(kind), tmp_path / "a"
    for cut in (len(whole) // 2, len(whole) - 30, len(whole) - (9 if kind == "PNG" else 1)):
        path.write_bytes(whole[:cut])
        with pytest.raises(Unreadable, match=r"end is missing|checksum|none of the formats"):
            look(path)
    path.write_bytes(whole + b"\0" * 5_000)
    assert look(path) == (40, 40)


def test_a_png_of_which_a_byte_is_wrong(tmp_path):
    whole, path = bytearray(noise("PNG")), tmp_path / "a"
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(Unreadable, match="a checksum of it is wrong"):
        look(path)


def test_what_is_not_decoded_is_said(folder, monkeypatch):
    """Every file is looked at; some, of every class, are decoded; how many are not is a note for the command."""
    assert load_images("folder", folder).notes == ()
    monkeypatch.setattr("robustpatch.data.folder_contents._DECODED", 4 * 16 * 16)
    decoded = []
    monkeypatch.setattr("robustpatch.data.folder_contents.picture", lambda path, _: decoded.append(path.parent.name))
    (note,) = load_images("folder", folder).notes
    assert note.startswith("12 of 16 pictures were not decoded beforehand, only their headers and ends were read; ")
    assert decoded == ["cat", "cat", "dog", "dog"]
    jpeg = folder / "dog" / "7.jpg"
    jpeg.write_bytes(jpeg.read_bytes()[:-2])
    with pytest.raises(InvalidInput, match=r"1 of 16 pictures cannot be used: dog/7\.jpg \(its end is missing\)"):
        load_images("folder", folder)
    notes = load_images("folder", folder, skip_broken=True).notes
    assert [note.partition(":")[0][:20] for note in notes] == ["left out", "11 of 16 pictures we"]


def test_memory_does_not_grow_with_the_folder(tmp_path):
    """Pictures are looked at one by one: of many, no more is held than of one."""
    content = noise("BMP") + bytes(2**20)
    for number in range(12):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        (tmp_path / str(number % 2) / f"{number}.bmp").write_bytes(content)
    tracemalloc.start()
    found = look_into(tmp_path, resized=False)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.files) == 12
    assert most < 8 * len(content), most


def test_a_batch_larger_than_memory(folder, monkeypatch):
    """Is refused with what can be done, and not ended by the system."""
    monkeypatch.setattr("robustpatch.data.image_set.free", lambda _: 4 * 3 * 16 * 16 * 5)
    images = load_images("folder", folder)
    assert images.batch(range(5))[0].shape == (5, 3, 16, 16)
    with pytest.raises(InvalidInput, match=r"^6 images of \(3, 16, 16\) together take .* --batch-size, or smaller"):
        images.batch(range(6))

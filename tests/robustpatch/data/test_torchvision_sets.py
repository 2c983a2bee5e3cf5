"""GTSRB and Imagenette in torchvision's layout: splits, classes, sizes, and clear errors without the network."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from PIL import Image

from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput


def picture(path: Path, value: int, size: tuple[int, int] = (20, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> Path:
    """Nine tracks of three frames in each of two classes, one in all others; frames show the number of their track."""
    root = tmp_path_factory.mktemp("signs")
    for number in range(43):
        for track in range(9 if number < 2 else 1):
            for frame in range(3):
                picture(root / f"gtsrb/GTSRB/Training/{number:05d}/{track:05d}_{frame:05d}.ppm", 10 * track)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index, number in enumerate((16, 1, 38)):
        picture(root / f"gtsrb/GTSRB/Final_Test/Images/{index:05d}.ppm", number, (30, 40))
        rows.append(f"{index:05d}.ppm;30;40;1;1;2;2;{number}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return root


def test_signs_are_held_out_by_whole_tracks(signs):
    """No track is in both parts; a class's validation track is its fourth of eight; together they are all images."""
    train, validation = (load_images("gtsrb", signs, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == ((2 * 9 + 41) * 3 - 6, 6)
    x, y = validation.batch(range(6))
    assert x.shape == (6, 3, 32, 32)
    assert torch.equal((x[:, 0, 0, 0] * 255).round(), torch.full((6,), 30.0))  # track 3 alone
    assert y.tolist() == [0, 1, 0, 1, 0, 1]  # of every class in turn
    seen, labels = train.batch(range(len(train)))
    assert 30 not in (seen[:, 0, 0, 0] * 255).round()[labels < 2].tolist()


def test_signs_to_test_keep_the_official_order(signs):
    """Labels come from the official table; images of any size become 32x32, or what is asked for."""
    test = load_images("gtsrb", signs)
    x, y = test.batch(range(3))
    assert (x.shape, y.tolist()) == ((3, 3, 32, 32), [16, 1, 38])
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [16, 1, 38]
    assert [test.class_names[k] for k in y] == ["no trucks", "speed limit 30", "keep right"]
    assert load_images("gtsrb", signs, image_size=(48, 64)).image_shape == (3, 48, 64)
    with pytest.raises(InvalidInput, match="channels is 1, but dataset gtsrb has its own"):
        load_images("gtsrb", signs, channels=1)


def test_imagenette(tmp_path):
    """Every tenth training image is for validation; test images, the folder "val", come from every class in turn."""
    for number in (1440764, 2102040, 2979186, 3000684, 3028079, 3394916, 3417042, 3425413, 3445777, 3888257):
        for i in range(12):
            picture(tmp_path / f"imagenette2/train/n{number:08d}/{i:03d}.JPEG", 0, (30, 20))
        for i in range(2):
            picture(tmp_path / f"imagenette2/val/n{number:08d}/{i:03d}.JPEG", 100)
    train, validation, test = (load_images("imagenette", tmp_path, split) for split in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (108, 12, 20)
    assert test.labels.tolist() == [*range(10), *range(10)]
    assert (test.class_names[0], test.class_names[9]) == ("tench", "parachute")
    assert test.batch([0, 9])[0].shape == (2, 3, 224, 224)
    folder = tmp_path / "imagenette2/val/extra"
    folder.mkdir()
    with pytest.raises(InvalidInput, match="Imagenette has a folder 'extra' that is no class of it; remove it"):
        load_images("imagenette", tmp_path)
    folder.rmdir()
    shutil.rmtree(tmp_path / "imagenette2/val/n01440764")
    with pytest.raises(InvalidInput, match="imagenette2/val holds 9 classes of 10"):
        load_images("imagenette", tmp_path)


@pytest.mark.parametrize(("name", "module"), [("gtsrb", "gtsrb"), ("imagenette", "imagenette")])
def test_a_failed_download(tmp_path, monkeypatch, name, module):
    """No files and no network: the folder and the remedy."""

    def download(*arguments, **options):
        raise URLError("no network in tests")

    monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", download)
    with pytest.raises(InvalidInput, match=rf"data-root is {tmp_path}.*no network in tests.*torchvision's layout"):
        load_images(name, tmp_path)

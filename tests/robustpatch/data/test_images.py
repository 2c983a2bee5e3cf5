"""Images and labels by name: the sample, a folder, and clear errors without the network."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from robustpatch.data.image_set import read_ahead
from robustpatch.data.images import default_root, load_images
from robustpatch.errors import InvalidInput


def test_the_sample():
    """500 MNIST test images in [0, 1], in order, with labels; batches by any index."""
    sample = load_images("mnist-sample")
    assert (len(sample), sample.image_shape, sample.split) == (500, (1, 28, 28), "test")
    assert sample.class_names == tuple("0123456789")
    x, y = sample.batch(range(500))
    assert (x.dtype, x.shape, y.shape) == (torch.float32, (500, 1, 28, 28), (500,))
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # MNIST's test set begins so
    some, labels = sample.batch(torch.tensor([3, 1]))
    assert torch.equal(some, x[[3, 1]])
    assert torch.equal(labels, y[[3, 1]])


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("imagenet", "test", "dataset is 'imagenet'; known are mnist-sample"),
        ("mnist", "dev", "split is 'dev'; known are"),
        ("mnist-sample", "train", "use --dataset mnist"),
    ],
)
def test_unknown_names(tmp_path, name, split, message):
    """The message lists what is known."""
    with pytest.raises(InvalidInput, match=message):
        load_images(name, tmp_path, split)


@pytest.mark.parametrize(("name", "dataset"), [("mnist", MNIST), ("cifar10", CIFAR10)])
def test_a_failed_download(tmp_path, monkeypatch, name, dataset):
    """No files and no network: the parameter, the folder and the remedy; nothing else is raised."""

    def download(self):
        raise URLError("no network in tests")

    monkeypatch.setattr(dataset, "download", download)
    with pytest.raises(InvalidInput, match=rf"data-root is {tmp_path}.*no network in tests.*torchvision's layout"):
        load_images(name, tmp_path)


def test_the_default_root(monkeypatch, tmp_path):
    """The environment names it."""
    monkeypatch.setenv("ROBUSTPATCH_DATA", str(tmp_path))
    assert default_root() == tmp_path


def folder(root, split: str, count: int, size=(6, 8)) -> None:
    for number, name in enumerate(("cat", "dog")):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.full((*size, 3), 20 * i + 100 * number, np.uint8)
            Image.fromarray(pixels).save(root / split / name / f"{i:03d}.png")


def test_a_folder(tmp_path):
    """Classes by name, test images from each in turn; train and validation are disjoint and together everything."""
    folder(tmp_path, "train", 5)
    folder(tmp_path, "test", 2)
    test = load_images("folder", tmp_path)
    assert (test.class_names, test.image_shape, test.labels.tolist()) == (("cat", "dog"), (3, 6, 8), [0, 1, 0, 1])
    x, _ = test.batch([1, 2])
    assert x[:, 0, 0, 0].tolist() == pytest.approx([100 / 255, 20 / 255])
    parts = [load_images("folder", tmp_path, split) for split in ("train", "validation")]
    shades = []
    for part in parts:
        x, y = part.batch(range(len(part)))
        shades.append({(int(label), round(float(image.mean()) * 255)) for image, label in zip(x, y, strict=True)})
    assert len(shades[0] | shades[1]) == 10
    assert not shades[0] & shades[1]
    assert shades[1]


def test_a_folder_of_validation_images(tmp_path):
    """Where there is one, no training image is held out, and its classes take turns; those of train are needed."""
    folder(tmp_path, "train", 5)
    folder(tmp_path, "validation", 2)
    train, validation = (load_images("folder", tmp_path, split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (10, 4)
    x, y = validation.batch(range(4))
    assert (y.tolist(), (x[:, 0, 0, 0] * 255).round().tolist()) == ([0, 1, 0, 1], [0, 100, 20, 120])
    (tmp_path / "validation" / "dog").rename(tmp_path / "validation" / "cow")
    with pytest.raises(InvalidInput, match=f"data-root is {tmp_path}, where cow, dog is a class of either") as refused:
        load_images("folder", tmp_path, "validation")
    assert "\n" not in str(refused.value)
    named = load_images("folder", tmp_path, "validation", class_names=("cow", "cat", "dog"))
    assert named.labels.tolist() == [1, 0, 1, 0]
    (tmp_path / "train").rename(tmp_path / "other")
    with pytest.raises(InvalidInput, match="with a validation but no train"):
        load_images("folder", tmp_path, "validation")


def test_classes_of_unequal_size_take_turns_while_they_last(tmp_path):
    """Every image once, and the first of them from as many classes as there are."""
    folder(tmp_path, "test", 2)
    for i in (7, 8):
        Image.fromarray(np.full((6, 8, 3), i, np.uint8)).save(tmp_path / "test" / "dog" / f"{i:03d}.png")
    test = load_images("folder", tmp_path, class_names=("dog", "cow", "cat"))
    assert test.labels.tolist() == [2, 0, 2, 0, 0, 0]
    x, _ = test.batch(range(6))
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 20, 120, 7, 8]


def test_a_folder_is_read_once(tmp_path, monkeypatch):
    """Its files can go once each image was asked for; of another part nothing is kept, nor of a folder too large."""
    folder(tmp_path, "test", 3)
    images = load_images("folder", tmp_path)
    first, _ = images.batch([0, 2, 4])
    kept = [tmp_path / "test" / name for name in ("cat/000.png", "cat/001.png", "cat/002.png")]
    for path in kept:
        path.unlink()
    assert torch.equal(images.batch([4, 2, 0, 0])[0], first[[2, 1, 0, 0]])
    for other in (lambda: images.stored(0), lambda: replace(images).batch([0])):
        with pytest.raises(InvalidInput, match=r"000\.png cannot be read"):
            other()
    images.batch([1])
    monkeypatch.setattr("robustpatch.data.image_set._HELD", 6 * 6 * 8 * 3 - 1)
    assert torch.equal(images.batch([4])[0], first[2:])
    large = replace(images)
    large.batch([3])
    (tmp_path / "test" / "dog" / "001.png").unlink()
    with pytest.raises(InvalidInput, match=r"001\.png cannot be read"):
        large.batch([3])


@pytest.mark.parametrize("workers", [0, 1, 3, 20])
def test_batches_read_ahead(tmp_path, workers):
    """In order, whatever the number of threads, and no more of them ahead than that; what fails, fails when due."""
    folder(tmp_path, "test", 6)
    images = load_images("folder", tmp_path)
    batches = torch.arange(12).flip(0).split(2)
    asked = []

    def counted():
        for number, index in enumerate(batches):
            asked.append(number)
            yield index

    for number, (x, y) in enumerate(read_ahead(images, counted(), workers)):
        assert len(asked) == min(6, number + workers + 1)
        assert torch.equal(x, images.batch(batches[number])[0])
        assert torch.equal(y, images.labels[batches[number]])
    assert number == 5
    (tmp_path / "test" / "cat" / "001.png").unlink()
    broken = read_ahead(replace(images), batches, workers)
    for _ in range(4):
        next(broken)
    with pytest.raises(InvalidInput, match=r"001\.png cannot be read"):
        next(broken)
    with pytest.raises(InvalidInput, match="workers is -1"):
        next(read_ahead(images, batches, -1))


def test_folders_that_are_none(tmp_path):
    """A missing folder, and images of several sizes."""
    with pytest.raises(InvalidInput, match="there are no images in"):
        load_images("folder", tmp_path)
    folder(tmp_path, "test", 1)
    Image.fromarray(np.zeros((5, 8, 3), np.uint8)).save(tmp_path / "test" / "dog" / "999.png")
    with pytest.raises(InvalidInput, match="bring all to one size with --image-size"):
        load_images("folder", tmp_path)


def test_a_folder_of_other_sizes_is_cropped_in_the_middle(tmp_path):
    """Scaled to cover the size asked for, then cropped: the middle stays, whichever side is longer."""
    for name, size in (("wide", (10, 40)), ("tall", (40, 10)), ("small", (8, 8))):
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1] = 255
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "1.png")
    images = load_images("folder", tmp_path, image_size=(6, 8), class_names=("wide", "other", "tall", "small"))
    x, y = images.batch(range(3))
    assert (images.image_shape, tuple(x.shape), y.tolist()) == ((3, 6, 8), (3, 3, 6, 8), [3, 2, 0])
    assert (x[:, :, 2:4, 3:5].amin(dim=(1, 2, 3)) > x[:, :, 0, 0].amax(dim=1)).all()
    torch.testing.assert_close(x, x.flip(2, 3), atol=2 / 255, rtol=0)
    grey = load_images("folder", tmp_path, image_size=(6, 8), channels=1)
    assert (grey.image_shape, grey.class_names) == ((1, 6, 8), ("small", "tall", "wide"))
    torch.testing.assert_close(grey.batch(range(3))[0], x[:, :1], atol=1 / 255, rtol=0)


def test_folders_laid_out_otherwise(tmp_path):
    """`root`/CLASS is taken for the test images, `root`/val is not taken for a class; class names are checked."""
    folder(tmp_path, "val", 1)
    with pytest.raises(InvalidInput, match=r"holds val but no test; name the one to test, as in .*val"):
        load_images("folder", tmp_path)
    assert load_images("folder", tmp_path / "val").class_names == ("cat", "dog")
    for names, why in ((("cat", "cow"), "not dog, folders of"), (("cat", "dog", "cat"), "one of them twice")):
        with pytest.raises(InvalidInput, match=why):
            load_images("folder", tmp_path / "val", class_names=names)
    with pytest.raises(InvalidInput, match="channels is 4"):
        load_images("folder", tmp_path / "val", channels=4)
    with pytest.raises(InvalidInput, match=r"image_size is \(4, 4\), but dataset mnist-sample has its own"):
        load_images("mnist-sample", image_size=(4, 4))


def test_folders_called_by_numbers(tmp_path):
    """Their order is that of texts, as of torchvision's ImageFolder, and said where that of the numbers is another."""
    for name in ("0", "2", "10"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "0.png")
    images = load_images("folder", tmp_path)
    assert images.class_names == ("0", "10", "2")
    assert images.notes == (
        "the classes of the folder are in the order of texts (0, 10, 2); where the model's outputs are in another, "
        "such as that of the numbers, name them in it with --classes",
    )
    assert load_images("folder", tmp_path, class_names=("0", "2", "10")).notes == ()
    (tmp_path / "10").rename(tmp_path / "1")
    assert load_images("folder", tmp_path).notes == ()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems make no such names")
def test_names_that_are_no_text(tmp_path):
    """Of a class, which reports could not write: refused before any work. Of a picture: taken, and named by codes."""
    for name in (b"cat", b"dog"):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"test", name))
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "cat" / "\udcfc.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "test" / "dog" / "a.png")
    (tmp_path / "test" / "dog" / "\udcfc.png").write_bytes(b"")
    found = load_images("folder", tmp_path, skip_broken=True)
    assert len(found) == 2
    assert r"dog/\udcfc.png (" in str(found.left_out)
    (tmp_path / "test" / "dog").rename(tmp_path / "test" / "Z\udcfcrich")
    with pytest.raises(
        InvalidInput, match=r"the folder Z\\udcfcrich is no text in utf-8; rename it, or set PYTHONUTF8=1"
    ):
        load_images("folder", tmp_path, skip_broken=True)

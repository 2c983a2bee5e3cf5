"""Images of one's own from memory: tensors, arrays, torch datasets and loaders, kept to the bit or refused."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from attacks import parse_attacks
from evaluate import Settings, evaluate
from robustpatch import InvalidInput, PatchThreat
from robustpatch.data import as_image_set
from tests import toys

X, Y = toys.images(5, 3, (4, 6)) * 0.999, torch.tensor([0, 2, 1, 2, 0])


class Pictures(Dataset):
    classes = ("cat", "dog", "bird")

    def __init__(self, sizes=((6, 4),) * 3):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, i):
        return Image.new("RGB", self.sizes[i], (10 * i, 0, 255)), i


@pytest.mark.parametrize(
    "images",
    [(X, Y), (X.numpy(), Y.numpy()), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), batch_size=2)],
    ids=["tensors", "arrays", "dataset", "loader"],
)
def test_floats_are_kept_to_the_bit(images):
    found = as_image_set(images, class_names=["a", "b", "c"])
    x, y = found.batch([4, 1])
    assert torch.equal(x, X[[4, 1]])
    assert torch.equal(y, Y[[4, 1]])
    assert (found.class_names, found.image_shape, len(found)) == (("a", "b", "c"), (3, 4, 6), 5)
    x.zero_()
    assert torch.equal(found.batch([4, 1])[0], X[[4, 1]])
    assert as_image_set(found) is found


def test_pictures_and_bytes_are_what_files_are():
    found = as_image_set(Pictures())
    assert found.class_names == Pictures.classes
    assert found.batch([2])[0][0, :, 0, 0].tolist() == pytest.approx([20 / 255, 0, 1])
    pixels = (X * 255).byte()
    assert torch.equal(as_image_set((pixels, Y)).batch(range(5))[0], pixels / 255)
    assert as_image_set((pixels, Y)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("images", "options", "error"),
    [
        ((X * 2, Y), {}, "images have values from .*; give uint8, or floats"),
        ((X * torch.nan, Y), {}, "images have values from nan"),
        ((X[0], Y), {}, r"images have shape \(3, 4, 6\)"),
        ((X, Y[:3]), {}, r"labels \(3,\)"),
        ((X[:0], Y[:0]), {}, r"images have shape \(0, 3, 4, 6\)"),
        ((X, Y.float()), {}, "labels are torch.float32"),
        ((X, Y - 1), {}, "labels are torch.int64 from -1"),
        ((X, Y), {"class_names": ["a"]}, "labels go up to 2, but class_names has 1"),
        (Pictures(((6, 4), (4, 6))), {}, r"shapes \(3, 4, 6\) and \(3, 6, 4\)"),
    ],
)
def test_what_are_no_images_is_refused(images, options, error):
    with pytest.raises(InvalidInput, match=error):
        as_image_set(images, **options)


def test_the_evaluator_takes_them_as_they_are(tmp_path):
    """A pair of tensors is evaluated as an image set is; other images are another run."""
    model, settings = toys.smoothed(toys.linear(6, (4, 6))), Settings(5, gallery=0)
    pair = evaluate(model, (X, Y), "1x1", "sparse-rs:20", settings, tmp_path / "pair")
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    kept = evaluate(model, as_image_set(loader), PatchThreat(1, 1), parse_attacks("sparse-rs:20"))
    assert [one.prediction for one in pair] == [one.prediction for one in kept]
    with pytest.raises(InvalidInput, match="holds another run"):
        evaluate(model, (X.flip(0), Y), "1x1", "sparse-rs:20", settings, tmp_path / "pair")

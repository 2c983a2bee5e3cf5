"""Hugging Face folders: the model's answers, its preprocessing as its own processor does it, the names of classes.

Slow, for the time that importing transformers takes; what is refused before that is in test_refused.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from robustpatch.data.framing import Framing
from robustpatch.errors import InvalidInput
from robustpatch.intake import look_at
from tests import toys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    path = tmp_path_factory.mktemp("hf")
    names = {0: "cat", 1: "dog", 2: "eel"}
    options = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
    config = ResNetConfig(**options, id2label=names, label2id={name: number for number, name in names.items()})
    toys.seeded(lambda: ResNetForImageClassification(config)).eval().save_pretrained(path)
    ViTImageProcessor(size={"height": 32, "width": 40}, image_mean=[0.4, 0.5, 0.6]).save_pretrained(path)
    return path


def test_answers_and_preprocessing(folder):
    """Of a picture: framed, normalised and scored as by transformers."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    found = look_at(str(folder))
    assert found.classes == ("cat", "dog", "eel")
    assert found.preprocessing.framing == Framing((32, 40), (32, 40))
    picture = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    image = found.preprocessing.framing(pixels)[None].float() / 255
    theirs = AutoModelForImageClassification.from_pretrained(folder).eval()
    given = AutoImageProcessor.from_pretrained(folder)(pixels, return_tensors="pt")
    torch.testing.assert_close(found.build((32, 40))(image), theirs(**given).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", {"model_type": "timm_wrapper"}, "name one of timm as timm:NAME with --weights"),
        ("config.json", {"quantization_config": {"bits": 4}}, "could name code to run"),
        ("config.json", {"embedding_size": 8}, "does not"),
        ("preprocessor_config.json", {"image_std": None}, "is not understood"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "does more to a picture than scale, crop and normalise"),
    ],
)
def test_folders_refused(name, change, message, folder, tmp_path):
    """In a line, by what is in the file."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    read = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps({**read, **change}))
    with pytest.raises(InvalidInput, match=message) as found:
        look_at(str(tmp_path)).build((32, 40))
    assert "\n" not in str(found.value)

"""A checkpoint is a file that anybody may have written: its configuration asks for nothing but a network's shape."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from robustpatch.ablations.kinds import Columns
from robustpatch.checkpoints import load_checkpoint, model_from
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.encoding import ComplementChannels
from robustpatch.errors import InvalidInput
from robustpatch.networks import build
from robustpatch.networks.size_limit import at_most
from tests import toys
from tests.forbidding import forbidden

SIZE = (32, 32)
TINY: dict[str, Any] = {"patch_size": 16, "embed_dim": 12, "depth": 1, "num_heads": 2}
CONFIG: dict[str, Any] = {
    "format": 1,
    "network": {"name": "vit", **TINY},
    "ablation": None,
    "image_shape": [3, *SIZE],
    "class_names": ["a", "b", "c"],
}
SMALL = {**CONFIG, "network": {"name": "small-cnn", "widths": [4, 4], "hidden": 5}}
UNION = {
    **CONFIG,
    "network": {"name": "union"},
    "ablation": "columns:9+rows:9",
    "voting": "threshold:0.3",
    "guard": None,
    "encoding": "complement",
}


class Runs:
    """Unpickled, it would leave a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def secret(tmp_path):
    """A pickle that runs code where it is loaded, under the name of weights."""
    path = tmp_path / "secret-weights.pth"
    path.write_bytes(pickle.dumps(Runs(str(tmp_path / "it-ran"))))
    return path


def written(tmp_path, config, text: str | None = None, **tensors):
    path = tmp_path / "sent.safetensors"
    save_file(tensors or {"weight": torch.zeros(2)}, path, metadata={"robustpatch": text or json.dumps(config)})
    return path


def network(config=CONFIG, **options):
    return {**config, "network": {**config["network"], **options}}


HOSTILE = {
    "checkpoint_path": lambda at: network(checkpoint_path=at),
    "pretrained_cfg": lambda at: network(pretrained_cfg={"file": at}, pretrained=True),
    "pretrained_cfg_overlay": lambda at: network(pretrained_cfg_overlay={"file": at}, pretrained=True),
    "cache_dir": lambda at: network(cache_dir=at, pretrained=True),
    "hub": lambda at: network({**CONFIG, "network": {"name": "timm:hf-hub:somebody/model"}}),
    "local folder": lambda at: network({**CONFIG, "network": {"name": f"timm:local-dir:{at}"}}),
    "weights": lambda at: {**CONFIG, "network": {"name": "torchvision:resnet18", "weights": "DEFAULT"}},
    "backbone": lambda at: {**CONFIG, "network": {"name": "torchvision:fasterrcnn_resnet50_fpn"}},
    "backbone's weights": lambda at: {
        **CONFIG,
        "network": {"name": "torchvision:deeplabv3_resnet50", "weights_backbone": "DEFAULT"},
    },
    "quantized": lambda at: {**CONFIG, "network": {"name": "torchvision:quantized_resnet18", "quantize": True}},
    "union of timm's": lambda at: network(UNION, parts=[{"name": "vit", "checkpoint_path": at}, {"name": "strip"}]),
    "nested unions": lambda at: network(
        UNION, parts=[{"name": "union", "parts": [{"name": "vit"}]}, {"name": "strip"}]
    ),
    "pretrained parts": lambda at: network(UNION, parts=[{"name": "vit", "pretrained": True}, {"name": "strip"}]),
    "parts of no type": lambda at: network(UNION, parts=["strip", "strip"]),
    "a class": lambda at: network(mlp_layer="os.system"),
    "other number of classes": lambda at: network(num_classes=7),
    "size as text": lambda at: network(embed_dim="12"),
    "infinite": lambda at: network(drop_rate=float("inf")),
    "flag": lambda at: network(qkv_bias="yes"),
    "path as word": lambda at: network(global_pool=at),
    "no name": lambda at: {**CONFIG, "network": {"name": ["vit"]}},
    "no network": lambda at: {**CONFIG, "network": at},
    "defense": lambda at: {**CONFIG, "defense": f"{at}:Runs"},
    "defense of no type": lambda at: {**CONFIG, "defense": ["ibp"]},
    "classes": lambda at: {**CONFIG, "class_names": {"a": 1}},
    "class": lambda at: {**CONFIG, "class_names": ["a", 1]},
    "sides": lambda at: {**SMALL, "image_shape": [3, 10**9, 10**9]},
    "negative": lambda at: {**SMALL, "image_shape": [3, -1, 8]},
    "text": lambda at: {**SMALL, "image_shape": "333"},
    "ablation": lambda at: {**UNION, "ablation": 5},
    "guard": lambda at: {**UNION, "guard": "0"},
    "voting": lambda at: {**UNION, "voting": {}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_configuration_reaches_no_file_no_network_and_no_code(name, secret, tmp_path):
    """Refused in one line that names the checkpoint, with nothing opened, fetched or unpickled."""
    path = written(tmp_path, HOSTILE[name](str(secret)))
    for load in (load_checkpoint, SmoothedClassifier.from_pretrained):
        with forbidden(secret.name) as attempts, pytest.raises(InvalidInput, match=r"sent\.safetensors") as refused:
            load(path)
        assert attempts == []
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("config", "larger"),
    [
        (network(SMALL, widths=[2_000, 2_000]), "weights"),
        (network(SMALL, hidden=10**6), "weights"),
        (network(embed_dim=60_000, num_heads=1, depth=20), "weights"),
        (network(depth=60_000), "weights|layers"),
        ({**SMALL, "network": {"name": "torchvision:vit_h_14"}, "image_shape": [3, 28, 28]}, "weights"),
    ],
)
def test_a_network_is_not_built_beyond_its_weights(config, larger, tmp_path):
    """A file of a kilobyte asks for no gigabytes and no hours: refused before a tensor is filled."""
    with pytest.raises(InvalidInput, match=rf"sent\.safetensors.*network of more than .* ({larger}).*fetch or train"):
        load_checkpoint(written(tmp_path, config))


@pytest.mark.parametrize("config", [network(SMALL, hidden=10**10), network(SMALL, widths=[1] * 20_000)])
def test_sizes_that_no_network_has(config, tmp_path):
    """Too large to be counted in memory, and a list of twenty thousand: one line, not the whole of it."""
    with pytest.raises(InvalidInput, match=r"sent\.safetensors") as refused:
        load_checkpoint(written(tmp_path, config))
    assert len(str(refused.value)) < 700
    assert "\n" not in str(refused.value)


def test_what_is_allowed_is_counted_within_and_in_this_thread_alone():
    """The hooks are gone afterwards, also after an error."""
    for _ in range(2):
        with pytest.raises(InvalidInput, match="describes a network of more than"), at_most(1, 1):
            torch.nn.Linear(2**13, 2**12, device="meta")
        torch.nn.Linear(2**13, 2**12, device="meta")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1' + "0" * 5_000 + "}", '{"format": ', "5", '{"a":' * 9_999]
)
def test_json_that_is_none(text, tmp_path):
    """Nested a hundred thousand times, of five thousand digits, cut off: a damaged file."""
    with pytest.raises(InvalidInput, match=r"sent\.safetensors") as refused:
        load_checkpoint(written(tmp_path, None, text))
    assert len(str(refused.value)) < 500


def test_a_long_text_is_not_parsed(tmp_path):
    """Seventeen million bytes of zeros in a list would take gigabytes as a list."""
    with pytest.raises(InvalidInput, match=r"sent\.safetensors.*bytes of JSON"):
        load_checkpoint(written(tmp_path, None, "[" + "0," * 2**23 + "0]"))


def test_a_caller_may_ask_for_what_a_file_may_not():
    """Sizes and rates of the libraries' networks, and parts of a union by their options, as before."""
    common: dict[str, Any] = {"image_shape": (3, *SIZE), "num_classes": 3, "encoding": ComplementChannels()}
    vit = build(
        "vit", ablation=Columns(9), options={**TINY, "drop_rate": 0.1, "mean": [0.5] * 3, "std": [0.5] * 3}, **common
    )
    assert vit(toys.images(1, 3, SIZE)).shape[2] == 3
    parts = [{"name": "strip", "widths": [4]}, {"name": "strip", "widths": [5]}]
    model = model_from(network(UNION, parts=parts))
    assert model.eval()(toys.images(1, 3, SIZE)).shape == (1, 3)


def test_weights_are_fetched_for_training_alone(monkeypatch):
    """`pretrained` in a configuration is obeyed where the caller says so, and nowhere else."""
    asked = []

    def create(name, *, pretrained=False, **_):
        asked.append(pretrained)
        raise InvalidInput("far enough")

    monkeypatch.setattr("robustpatch.networks.registry.create", create)
    for options in ({}, {"pretrained": True}):
        with pytest.raises(InvalidInput, match="far enough"):
            model_from(network(pretrained=True), **options)
    assert asked == [False, True]

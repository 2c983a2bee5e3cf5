"""Checkpoints carry the whole configuration; what does not fit is refused."""

from __future__ import annotations

import hashlib
import lzma

import pytest
import torch
from safetensors.torch import save_file

from robustpatch.ablations.kinds import Columns
from robustpatch.checkpoints import load_checkpoint, model_from, names, save_checkpoint
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses.ibp import BoundedClassifier
from robustpatch.defenses.patchcleanser import PatchCleanser
from robustpatch.errors import InvalidInput
from robustpatch.networks import SmallCNN
from robustpatch.networks.resnet import ResNet18
from robustpatch.voting.rules import Threshold, TopOne
from tests import toys

CONFIG = {
    "network": {"name": "strip", "widths": [4, 4], "hidden": 8},
    "ablation": "rows:3/2",
    "voting": "threshold:0.4",
    "guard": 0.001,
    "encoding": "mask",
    "image_shape": [1, 6, 8],
    "class_names": ["a", "b", "c", "d"],
}


@pytest.fixture
def saved(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = model_from(CONFIG).eval()
    path = tmp_path / "deep" / "model.safetensors"
    save_checkpoint(path, model, CONFIG)
    return model, path


def test_round_trip(saved):
    """Equal scores, and everything a state dict does not carry: ablation, voting, guard, encoding, classes."""
    model, path = saved
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.model.scores(toys.images()), model.scores(toys.images()))
    assert loaded.model.ablation == model.ablation == loaded.model.base.ablation
    assert loaded.model.voting == Threshold(0.4, 0.001)
    assert (loaded.model.encoding.name, loaded.model.num_classes, loaded.model.guard) == ("mask", 4, 0.001)
    assert not any(module.training for module in loaded.model.modules())
    assert {key: loaded.config[key] for key in CONFIG} == CONFIG
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
    assert torch.equal(SmoothedClassifier.from_pretrained(path).predict(toys.images()), model.predict(toys.images()))
    assert load_checkpoint(str(path), voting=TopOne()).model.voting == TopOne()


def test_a_packed_one_is_the_same(saved, tmp_path):
    """The same name and SHA-256, which are of what is packed; one that is cut off, padded or a bomb is refused."""
    model, path = saved
    packed = tmp_path / "model.safetensors.xz"
    save_checkpoint(packed, model, CONFIG)
    one, other = load_checkpoint(path), load_checkpoint(packed)
    assert (one.name, one.sha256) == (other.name, other.sha256)
    assert torch.equal(one.model.scores(toys.images()), other.model.scores(toys.images()))
    whole = packed.read_bytes()
    bomb = lzma.compress(bytes(2**21), preset=0)
    cases = {"cut off": whole[:-10], "followed": whole + b"more", "more than": bomb, "Input format": b"no xz file" * 9}
    for message, data in cases.items():
        packed.write_bytes(data)
        with pytest.raises(InvalidInput, match=rf"damaged or no safetensors file .*({message})"):
            load_checkpoint(packed)


def test_another_ablation_is_refused(saved):
    """PITFALLS 21: the stored ablation is the only one; naming it is fine."""
    _, path = saved
    with pytest.raises(InvalidInput, match=r"ablation is columns:3.*was trained for rows:3/2"):
        load_checkpoint(path, ablation=Columns(3))
    assert load_checkpoint(path, ablation=load_checkpoint(path).model.ablation).path == path


def test_damaged_and_foreign_files_are_refused(saved, tmp_path):
    """Truncated, empty, text, weights without a configuration, another format, weights of another network."""
    model, path = saved
    whole = path.read_bytes()
    for name, data in (("short", whole[:-10]), ("shorter", whole[:100]), ("empty", b""), ("text", b"hello, world" * 9)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput, match="damaged or no safetensors"):
            load_checkpoint(tmp_path / name)
    for name, metadata in (("foreign", None), ("other", {"robustpatch": '{"format": 99}'})):
        save_file({"weight": torch.zeros(2)}, tmp_path / name, metadata=metadata)
        with pytest.raises(InvalidInput, match="no robustpatch configuration of format 1"):
            load_checkpoint(tmp_path / name)
    save_checkpoint(tmp_path / "wider", model, {**CONFIG, "network": {"name": "strip", "widths": [8, 4], "hidden": 8}})
    with pytest.raises(InvalidInput, match="does not fit its weights"):
        load_checkpoint(tmp_path / "wider")


def test_a_missing_checkpoint(tmp_path):
    """The message lists the names that exist."""
    with pytest.raises(InvalidInput, match="neither a file nor one of"):
        load_checkpoint(tmp_path / "none")


UNDEFENDED = {
    "network": {"name": "small-cnn", "widths": [3, 4], "hidden": 5},
    "ablation": None,
    "image_shape": [1, 6, 8],
    "class_names": ["a", "b", "c", "d"],
}


@pytest.fixture
def plain(tmp_path):
    model = toys.seeded(lambda: model_from(UNDEFENDED))
    path = tmp_path / "plain.safetensors"
    save_checkpoint(path, model, UNDEFENDED)
    return model, path


def test_an_undefended_round_trip(plain):
    """The network alone, in evaluation mode, with equal logits."""
    model, path = plain
    loaded = load_checkpoint(path)
    assert type(loaded.model) is SmallCNN
    assert torch.equal(loaded.model(toys.images()), model(toys.images()))
    assert not any(module.training for module in loaded.model.modules())
    assert {key: loaded.config[key] for key in UNDEFENDED} == UNDEFENDED


def test_an_undefended_checkpoint_is_taken_for_no_smoothed_one(plain, saved):
    """No ablation, no voting, no votes: each call says so. One that merely lacks its ablation is incomplete."""
    model, path = plain
    for call in (SmoothedClassifier.from_pretrained, lambda path: load_checkpoint(path).smoothed):
        with pytest.raises(InvalidInput, match=r"plain.safetensors is undefended: .* name one of a smoothed"):
            call(path)
    with pytest.raises(InvalidInput, match=r"ablation is columns:2, .*is undefended and has none; drop --ablation"):
        load_checkpoint(path, ablation=Columns(2))
    with pytest.raises(InvalidInput, match=r"voting is top1, .*is undefended and casts no votes; drop it"):
        load_checkpoint(path, voting=TopOne())
    save_checkpoint(path, model, {key: value for key, value in UNDEFENDED.items() if key != "ablation"})
    for options in ({}, {"voting": TopOne()}):
        with pytest.raises(InvalidInput, match="configuration is incomplete"):
            load_checkpoint(path, **options)
    assert load_checkpoint(saved[1]).smoothed.num_classes == 4


def test_shipped_checkpoints_load():
    """Each name in the package gives a model that fits its own configuration."""
    families = [
        "2blocks4",
        "2columns1",
        "bagcert",
        "blocks8",
        "columns2",
        "columns2-head",
        "columns2-rows2",
        "columns2-seed1",
        "columns2-seed2",
        "columns4-top1",
        "rows2",
    ]
    others = {
        "mnist-ibp": BoundedClassifier,
        "mnist-patchcleanser": PatchCleanser,
        "mnist-sparse5": RandomizedClassifier,
        "mnist-undefended": SmallCNN,
        "signs-patchcleanser": PatchCleanser,
        "signs-undefended": ResNet18,
    }
    colour = ["cifar10-columns4", "imagenette-columns25", "signs-columns4"]
    assert names() == sorted([*colour, *(f"mnist-{family}" for family in families), *others])
    for name in names():
        checkpoint = load_checkpoint(name)
        kind = others.get(name, SmoothedClassifier)
        assert isinstance(checkpoint.model, kind)
        channels, height, width = checkpoint.config["image_shape"]
        scores = checkpoint.model(torch.zeros(1, channels, height, width))
        assert scores.shape == (1, len(checkpoint.config["class_names"]))

"""Checkpoints of their own, so that the command line is tested without what the package ships."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from evaluate.audit import factory
from robustpatch.checkpoints import model_from, save_checkpoint
from robustpatch.classifiers import base_check
from robustpatch.data.images import load_images
from robustpatch.storage import locks

CONFIG = {
    "network": {"name": "strip", "widths": [4, 4], "hidden": 0},
    "ablation": "columns:2",
    "voting": "threshold:0.3",
    "guard": None,
    "encoding": "complement",
    "image_shape": [1, 28, 28],
    "class_names": list("0123456789"),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A classifier of untrained features whose bias makes 7 likely: some images certified, most for a wrong label."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_from(CONFIG)
    with torch.no_grad():
        model.base.head[0].weight *= 3
        model.base.head[0].bias[7] += 2
    path = tmp_path_factory.mktemp("weights") / "toy.safetensors"
    save_checkpoint(path, model, CONFIG)
    return path


@pytest.fixture(scope="session")
def sparse(tmp_path_factory):
    """A sparse classifier that says 7, or 3 where the five pixels it sees are worth two white ones: most say 7."""
    config = {**CONFIG, "network": {"name": "mlp", "widths": []}, "ablation": "sparse:5", "voting": "top1"}
    torch.set_num_threads(1)
    model = model_from(config)
    with torch.no_grad():
        for parameter in model.base.parameters():
            parameter.zero_()
        model.base.head.weight[3, : 28 * 28] = 4
        model.base.head.bias[7] = 7
    path = tmp_path_factory.mktemp("weights") / "sparse.safetensors"
    save_checkpoint(path, model, config)
    return path


@pytest.fixture(scope="session")
def undefended(tmp_path_factory):
    """A plain network of untrained features whose last layer knows the first eight images and no others."""
    config = {"network": {"name": "small-cnn", "widths": [4, 4], "hidden": 16}, "ablation": None}
    config |= {key: CONFIG[key] for key in ("image_shape", "class_names")}
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = model_from(config)
        x, y = load_images("mnist-sample").batch(range(8))
        wanted = torch.nn.functional.one_hot(y, 10).float() - model.head.bias
        model.head.weight.copy_(torch.linalg.lstsq(model.features(x), wanted, driver="gelsd").solution.T)
    path = tmp_path_factory.mktemp("weights") / "plain.safetensors"
    save_checkpoint(path, model, config)
    return path


@pytest.fixture
def only_plans(monkeypatch):
    """A function of the plans that an audit is to have, instead of all."""
    return lambda *plans: monkeypatch.setattr(factory, "plans", lambda *_: list(plans))


@pytest.fixture
def unchecked_base(monkeypatch):
    """A base is taken for sound whatever it is: what else sees that it is not?"""
    monkeypatch.setattr(base_check, "base_is_sound", lambda *_, **__: None)


@pytest.fixture
def impatient(monkeypatch):
    """A folder in which somebody is at work is refused at once."""
    monkeypatch.setattr(locks, "_PATIENCE", 0.0)


@pytest.fixture
def few_plans(monkeypatch):
    """Of the audit's plans the image asked about and a low one, with a pixel and a low and wide patch besides: a whole
    audit in seconds. What the others are for has tests of its own: searches, batches, every patch size, counters.
    """
    whole = factory.plans

    def few(*asked):
        some = [plan for plan in whole(*asked) if not (plan.deep or plan.brief or plan.only_long)]
        return [replace(some[0], batches=False), replace(some[1], threats=some[1].threats[:3])]

    monkeypatch.setattr(factory, "plans", few)

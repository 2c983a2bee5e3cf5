"""A defense as a value, as a module and as a checkpoint: what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from evaluate.model.identity import weights_sha256
from robustpatch.checkpoints import load_checkpoint, network_of
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.defenses import Defended, Defense, parse_defense, registry
from robustpatch.errors import InvalidInput
from robustpatch.training.config import TrainingConfig
from tests import helpers, toys


@dataclass(frozen=True)
class Brighter(Defense):
    """Adds light, which is no defense."""

    name: ClassVar[str] = "brighter"
    by: float = 0.1
    word: str = "some"
    often: int = 1
    on: bool = True

    def wrap(self, network, *, num_classes) -> Defended:
        return Lit(network, self, num_classes=num_classes)


class Lit(Defended):
    def forward(self, x):
        return self.network(x + self.defense.by)

    def training_loss(self, x, y, threat, generator, done):
        assert 0 <= done < 1
        assert str(threat) == "3x3"
        return super().training_loss(x + 0.01 * torch.rand(x.shape, generator=generator), y, threat, generator, done)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(registry.KNOWN, "brighter", f"{__name__}:Brighter")


SETTINGS = {
    "ablation": None,
    "defense": "brighter:by=0.2",
    "network": {"name": "small-cnn", "widths": [4], "hidden": 8},
    "patch": "3x3",
    "epochs": 2,
    "batch_size": 40,
    "bfloat16": False,
}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.digits(80)


@pytest.mark.parametrize("text", ["brighter", "brighter:by=0.2", "brighter:by=0.3,word=a,often=2,on=False"])
def test_the_text_of_a_defense_is_read_again(text):
    defense = parse_defense(text)
    assert str(defense) == text
    assert parse_defense(str(defense)) == defense


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dimmer", "known are"),
        ("brighter:dark=1", "dark is no option here; known are by"),
        ("brighter:by", "'by'"),
        ("brighter:by=much", "by is 'much'"),
        ("brighter:on=perhaps", "on is 'perhaps'"),
    ],
)
def test_a_wrong_text_is_refused_with_what_is_known(text, said):
    with pytest.raises(InvalidInput, match=said):
        parse_defense(text)


def test_a_defended_network_is_trained_resumed_and_loaded_as_such(images, tmp_path):
    """The same weights in one go and in two, and the checkpoint is the defended classifier."""
    config = TrainingConfig(**SETTINGS)
    alone, resumed = helpers.alone_and_resumed(config, images, tmp_path)
    loaded = load_checkpoint(tmp_path / "stopped" / "checkpoint.safetensors")
    x, _ = images.batch(range(5))
    assert isinstance(loaded.model, Lit)
    assert str(loaded.model.defense) == config.defense
    assert network_of(loaded.model) is loaded.model.network
    for model in (alone.eval(), loaded.model):
        assert torch.equal(model(x), resumed.eval()(x))
    assert as_classifier(loaded.model).describe() == {"ablation": None, "defense": "brighter:by=0.2"}
    with pytest.raises(InvalidInput, match="brighter"):
        _ = loaded.smoothed


def test_a_fingerprint_tells_defenses_apart_and_what_they_are_around():
    base = toys.linear(channels=1)
    smoothed = SmoothedClassifier(toys.linear(), toys.Columns(2), num_classes=toys.CLASSES)
    other = SmoothedClassifier(toys.linear(), toys.Columns(3), num_classes=toys.CLASSES)
    models = [
        base,
        *(Brighter(by=by).wrap(base, num_classes=toys.CLASSES) for by in (0.1, 0.2)),
        *(Brighter().wrap(inner, num_classes=toys.CLASSES) for inner in (smoothed, other)),
    ]
    assert len({weights_sha256(model) for model in models}) == len(models)


def test_training_mode_and_foreign_values_are_refused():
    model = Brighter().wrap(toys.linear(channels=1), num_classes=toys.CLASSES)
    with pytest.raises(InvalidInput, match="training mode"):
        model.train().predict(toys.images())
    with pytest.raises(InvalidInput, match="divide by 255"):
        model.eval().predict(toys.images() * 255)
    with pytest.raises(InvalidInput, match="num_classes is 1"):
        Brighter().wrap(toys.linear(channels=1), num_classes=1)


@pytest.mark.parametrize("options", [{"patch": "3x3", "defense": None}, {"voting": "top1"}, {"certificate": 1.0}])
def test_settings_without_a_meaning_are_refused(options):
    with pytest.raises(InvalidInput, match="without an ablation"):
        TrainingConfig(**{"ablation": None, "defense": "brighter", **options})

"""PITFALLS 31: a training ends, and publishes nothing, where its loss, its weights or its bfloat16 are no numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.train import shown
from robustpatch.training import loop as training
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import train
from tests import helpers, lying

NETWORK = {"name": "strip", "widths": [4, 4], "hidden": 8}
STRIP = TrainingConfig(network=NETWORK, epochs=2, batch_size=40)
CONFIGS = {
    "one pass": STRIP,
    "enumerated": replace(STRIP, network={"name": "small-cnn", "widths": [8, 8], "hidden": 8}),
    "undefended": replace(STRIP, network={"name": "small-cnn", "widths": [8, 8], "hidden": 8}, ablation=None),
    "sparse": replace(STRIP, network={"name": "mlp", "widths": [16]}, ablation="sparse:20", voting="top1"),
}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return helpers.half_digits(80)


@pytest.mark.parametrize("kind", list(CONFIGS))
def test_each_epoch_notes_how_far_bfloat16_is_from_float32(images, tmp_path, kind):
    rows = []
    train(CONFIGS[kind], images, images, tmp_path / "bfloat16", on_epoch=rows.append)
    found = [row["float32_deviation"] for row in rows]
    assert all(0 < one < 0.2 for one in found)
    history = json.loads((tmp_path / "bfloat16" / "history.json").read_text())
    assert [row["float32_deviation"] for row in history] == found
    rows = []
    train(replace(CONFIGS[kind], bfloat16=False, epochs=1), images, images, tmp_path / "other", on_epoch=rows.append)
    assert rows[0]["float32_deviation"] is None


@pytest.mark.parametrize("kind", ["one pass", "enumerated", "undefended"])
@pytest.mark.parametrize("lie", [lambda base: lying.Wrong(base, 60.0), lambda base: lying.NowAndThen(base, 1, 1e6)])
def test_a_lying_kernel_ends_the_training(images, tmp_path, kind, lie, monkeypatch):
    """Nothing is published by a network whose bfloat16 is another function than its float32."""
    build = training.model_from

    def lied(config, **options):
        model = build(config, **options)
        if kind == "undefended":
            forward = model.forward
            wrong = lie(lambda x: x)
            model.forward = lambda x: wrong_logits(wrong, forward(x))
            return model
        forward = model.base.score_all if kind == "one pass" else model.base.forward
        wrong = lie(torch.nn.Identity())
        name = "score_all" if kind == "one pass" else "forward"
        setattr(model.base, name, lambda *given: wrong_logits(wrong, forward(*given)))
        return model

    monkeypatch.setattr(training, "model_from", lied)
    with pytest.raises(InvalidInput, match=r"bfloat16 is off float32 by .* after epoch 1: .*--no-bfloat16|loss is"):
        train(replace(CONFIGS[kind], lr=1e-6), images, images, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def wrong_logits(wrong: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    return wrong(logits.flatten(0, -2)).view_as(logits)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_loss_that_is_no_number_ends_the_training(images, tmp_path, bfloat16):
    """The first epoch stays as it was written; the line says what to do."""
    config = replace(STRIP, bfloat16=bfloat16, batch_size=20)
    kept = tmp_path / "checkpoint.safetensors"
    before = []

    def spoil(epoch, step, loss):
        if epoch == 1:
            spoilt.setattr(torch.Tensor, "backward", lambda self: original(self * torch.nan))

    original = torch.Tensor.backward
    refused = pytest.raises(InvalidInput, match=r"loss is nan in step 3 of epoch 2; .*lower lr, 0.1")
    with pytest.MonkeyPatch.context() as spoilt, refused as caught:
        train(config, images, images, tmp_path, on_step=spoil, on_epoch=lambda _: before.append(kept.read_bytes()))
    assert ("--no-bfloat16" in str(caught.value)) == bfloat16
    assert [kept.read_bytes()] == before


def test_weights_that_are_no_numbers_are_not_published(images, tmp_path):
    """The last step of an epoch spoils them behind a loss that was in order."""

    def spoil(epoch, step, loss):
        if (epoch, step) == (0, 0):
            spoilt.setattr(torch.Tensor, "backward", lambda self: original(self * torch.nan))

    original = torch.Tensor.backward
    with pytest.MonkeyPatch.context() as spoilt, pytest.raises(InvalidInput, match=r"holds NaN .* after epoch 1; "):
        train(STRIP, images, images, tmp_path, on_step=spoil)
    assert not list(tmp_path.iterdir())


def test_the_line_of_an_epoch_says_it():
    out = StringIO()
    row = {"epoch": 1, "loss": 0.5, "clean": 0.9, "certified_margin": None, "certified_exact": None, "seconds": 3.0}
    with shown(Console(file=out), 2) as callbacks:
        callbacks["on_epoch"]({**row, "certifiable": None, "float32_deviation": 0.0125})
        callbacks["on_epoch"]({**row, "certifiable": None, "float32_deviation": None})
    assert out.getvalue().count("off float32 by 0.013, 3 s") == 1

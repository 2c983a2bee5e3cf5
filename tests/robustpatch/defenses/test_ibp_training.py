"""Training by interval bounds: which placements, what loss, and a run that is resumed with its guide."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from robustpatch import PatchThreat
from robustpatch.checkpoints import load_checkpoint
from robustpatch.defenses import parse_defense
from robustpatch.defenses.ibp_training import Guide, drawn_placements, every_placement
from robustpatch.errors import InvalidInput
from robustpatch.networks import MLP, SmallCNN
from robustpatch.threats.any_of import AnyOf
from robustpatch.training.config import TrainingConfig
from tests import helpers, toys
from tests.robustpatch.defenses.test_ibp import CLASSES, SIZE, deep, defended, images, linear, patched


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ibp:placements=-1", "placements is -1"),
        ("ibp:placements=1,guided=true", "draw at least 2"),
        ("ibp:weight=1.5", "weight is 1.5"),
        ("ibp:ramp=-0.1", "ramp is -0.1"),
    ],
)
def test_options_without_a_meaning_are_refused(text, said):
    with pytest.raises(InvalidInput, match=said):
        parse_defense(text)


THREATS = [PatchThreat(2, 2), AnyOf([PatchThreat(1, 3), PatchThreat(3, 1)]), PatchThreat(1, 2, 2)]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_placements_drawn_are_placements_of_the_threat(guided, threat):
    """Each is one that some threat has; chance is the generator's alone."""
    model, x = defended(linear(), guided=guided), images(5)
    known = set()
    for one in threat.threats:
        corners = one.placements(*SIZE)[torch.cartesian_prod(*[torch.arange(len(one.placements(*SIZE)))] * one.count)]
        known |= {mask.numpy().tobytes() for mask in one.footprint(corners.view(-1, one.count, 2), *SIZE)}
    drawn = [drawn_placements(x, threat, 40, torch.Generator().manual_seed(1), model.guide) for _ in range(2)]
    assert torch.equal(drawn[0].free, drawn[1].free)
    masks = {mask.numpy().tobytes() for mask in drawn[0].free.flatten(0, 1)}
    assert masks <= known
    assert len(masks) > 0.5 * min(len(known), 40)
    assert (drawn[0].guess is None) != guided


@torch.no_grad()
def test_all_placements_and_the_worst_of_them():
    """Of a linear network, the worst placement is that with the largest loss by brute force over corners."""
    x, y, model = images(5), torch.tensor([0, 1, 2, 0, 1]), defended(linear(3.0), placements=0)
    free = every_placement(x, PatchThreat(2, 2)).free
    assert free.shape == (5, 15, *SIZE)
    worst = model.losses(x, y, free).argmax(dim=1)
    for i in range(5):
        losses = []
        for corner in product(range(3), range(5)):
            logits = model(patched(x[i], [corner], 2, 2))
            raised = (logits - logits[:, y[i], None]).amax(dim=0)
            losses.append(float(raised.logsumexp(dim=0)))
        assert int(worst[i]) == losses.index(max(losses))
    with pytest.raises(InvalidInput, match="placements 0"):
        every_placement(x, PatchThreat(1, 1, 2))


@torch.no_grad()
def test_the_losses_of_shared_placements_are_those_of_each_image():
    """The short cut through a fully connected first layer, against bounds of the whole image."""
    x, y = images(5), torch.tensor([0, 1, 2, 0, 1])
    network = toys.seeded(lambda: MLP(image_size=SIZE, num_classes=CLASSES, in_channels=1, widths=[7, 5], norm=False))
    free = every_placement(x, PatchThreat(2, 3)).free
    for model, share in ((defended(network), 0.4), (defended(network), 1.0), (defended(linear()), 1.0)):
        assert torch.allclose(model.losses(x, y, free, share), model.losses(x, y, free.clone(), share), atol=1e-5)


@torch.no_grad()
def test_the_loss_goes_from_clean_to_worst_case():
    """At the beginning the cross-entropy alone; at the end, with weight 1, an upper bound of it under any patch."""
    x, y, threat = images(6), torch.tensor([0, 1, 2, 0, 1, 2]), PatchThreat(2, 2)
    model = defended(deep(3.0), placements=0, weight=1.0)
    losses = [float(model.training_loss(x, y, threat, torch.Generator(), done)) for done in (0.0, 0.25, 0.5, 0.9)]
    clean = nn.functional.cross_entropy(model(x), y)
    assert losses[0] == pytest.approx(float(clean), abs=1e-5)
    free = every_placement(x, threat).free
    alone = nn.functional.cross_entropy(model(x), y, reduction="none")
    assert torch.allclose(model.losses(x, y, free, 0.0), alone[:, None].expand(-1, free.shape[1]), atol=1e-5)
    assert losses[0] < losses[1] < losses[2] == losses[3]
    attained = [
        max(
            float(
                nn.functional.cross_entropy(
                    model(patched(x[i], [corner], 2, 2)), y[i].expand(81), reduction="none"
                ).max()
            )
            for corner in product(range(3), range(5))
        )
        for i in range(6)
    ]
    assert sum(attained) / 6 < losses[2]


def test_a_guided_run_is_resumed_to_the_bit(tmp_path):
    """The guide's weights are resumed with the network's; the checkpoint certifies what the trained model does."""
    some = helpers.digits(60, slice(10, 18))
    network = {"name": "mlp", "widths": [6], "norm": False}
    config = TrainingConfig(
        ablation=None, defense="ibp:placements=4,guided=True", network=network, patch="3x3", epochs=2, batch_size=30,
        optimizer="adamw", lr=0.01, bfloat16=False,
    )  # fmt: skip
    alone, _ = helpers.alone_and_resumed(config, some, tmp_path)
    guides = zip(alone.guide.parameters(), Guide().parameters(), strict=True)
    assert any(not torch.equal(own, first) for own, first in guides)
    loaded = load_checkpoint(tmp_path / "alone" / "checkpoint.safetensors").model
    inputs, _ = some.batch(range(9))
    found = [model.certify(inputs, PatchThreat(1, 1)) for model in (alone, loaded)]
    assert torch.equal(found[0].margin, found[1].margin)


def test_a_small_cnn_learns_under_autocast():
    """Two steps of the library's own network, as `robustpatch.train` takes them."""
    network = toys.seeded(lambda: SmallCNN(image_size=(8, 8), num_classes=CLASSES, widths=[4], hidden=8))
    model, chance = defended(network, placements=3).train(), torch.Generator().manual_seed(0)
    x, y = images(6, (8, 8)), torch.tensor([0, 1, 2, 0, 1, 2])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    for done in (0.4, 0.9):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.training_loss(x, y, PatchThreat(3, 3), chance, done)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert bool(torch.isfinite(loss))
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))

"""`to_art`: ART sees the model's predictions, gradients and certificates, and its attacks and metrics run on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import judge
from attacks.art.models import seeded
from attacks.art.to_art import to_art
from attacks.base import Proposal
from robustpatch.ablations.kinds import Columns
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.attacks.toys import Level, images, smoothed, strip

SIZE = (8, 8)
X = images(6, SIZE)


@pytest.fixture(scope="module")
def model():
    return strip(SIZE)


@pytest.fixture(scope="module")
def art(model):
    return to_art(model, (1, *SIZE))


def test_predictions_are_the_models(model, art):
    """Ties included: the winner's score is the largest."""
    many = images(64, SIZE, seed=1)
    assert (art.predict(many.numpy()).argmax(axis=1) == model.predict(many).numpy()).all()
    level = smoothed(Level(4), Columns(1), 4)
    tied = torch.tensor([0.0, 1 / 3, 1 / 3, 0.0]).expand(1, 1, 3, 4).contiguous()
    assert int(level.votes(tied).cast.sum(dim=1).max()) == 2
    assert to_art(level, (1, 3, 4)).predict(tied.numpy()).argmax() == int(level.predict(tied)) == 0


def test_gradients_are_autograds(model, art):
    """`loss_gradient` and `class_gradient` against autograd on the scores, computed here from the votes' margins."""

    def scores(x):
        margins = model.voting.margins(model.logits(x))
        log = torch.nn.functional.logsigmoid
        return log(margins).logsumexp(1) - log(-margins).logsumexp(1)

    leaf = X.clone().requires_grad_()
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    out = scores(leaf)
    settled = out.argmax(dim=1) == model.predict(X)  # where the winner is not lifted
    assert settled.any()
    loss = torch.nn.functional.cross_entropy(out, y, reduction="sum")
    (own,) = torch.autograd.grad(loss, leaf, retain_graph=True)
    found = art.loss_gradient(X.numpy(), np.eye(3, dtype=np.float32)[y])
    scale = own.abs().amax()
    assert scale > 0
    np.testing.assert_allclose(found[settled] * len(X), own[settled], atol=float(1e-4 * scale), rtol=1e-3)
    each = art.class_gradient(X.numpy())
    for k in range(3):
        (own,) = torch.autograd.grad(out[:, k].sum(), leaf, retain_graph=True)
        np.testing.assert_allclose(each[:, k], own, atol=float(1e-4 * own.abs().amax()), rtol=1e-3)
    np.testing.assert_allclose(art.class_gradient(X.numpy(), label=1)[:, 0], each[:, 1], atol=1e-6)


def test_certificates_are_the_models(model, art):
    threat = PatchThreat(1, 2)
    told, own = art.certify(X.numpy(), threat), model.certify(X, threat)
    assert torch.equal(told.placement_margin, own.placement_margin)
    assert torch.equal(art.certify(X, 1).margin, model.certify(X, PatchThreat(1, 1)).margin)


def test_arts_patch_attack_runs(model, art):
    """AdversarialPatchPyTorch learns a patch, whose images the judge takes or refuses like any other."""
    from art.attacks.evasion import AdversarialPatchPyTorch

    y = model.predict(X)
    with seeded(0):
        attack = AdversarialPatchPyTorch(
            art, patch_shape=(1, 4, 4), patch_location=(2, 2), max_iter=3, rotation_max=0.0, batch_size=6,
            targeted=False, optimizer="pgd", learning_rate=0.3, patch_type="square", verbose=False,
        )  # fmt: skip
        attack.generate(X.numpy(), np.eye(3, dtype=np.float32)[y])
        x_adv = torch.from_numpy(attack.apply_patch(X.numpy(), scale=0.5))
    corners = torch.tensor([[[2, 2]]]).expand(6, 1, 2)
    outcome = judge(model, X, y, PatchThreat(4, 4), Proposal(x_adv, corners, y * 0, torch.zeros(6)))
    assert outcome.in_range.all()
    assert outcome.contained.all()
    assert (x_adv != X).any()


def test_arts_metrics_run(art):
    from art.metrics import empirical_robustness, loss_sensitivity
    from art.utils import compute_accuracy

    labels = np.eye(3, dtype=np.float32)[art.predict(X.numpy()).argmax(axis=1)]
    assert compute_accuracy(art.predict(X.numpy()), labels)[0] == 1
    assert loss_sensitivity(art, X.numpy(), labels) > 0
    with seeded(0):
        assert empirical_robustness(art, X.numpy(), "fgsm", {"eps": 1.0, "eps_step": 0.2, "batch_size": 6}) >= 0


def test_what_is_refused(model, art):
    with pytest.raises(InvalidInput, match="model is a Level"):
        to_art(Level(2), (1, 4, 4))
    with pytest.raises(InvalidInput, match="image_shape is"):
        to_art(model, (1, 0, 8))
    with pytest.raises(InvalidInput, match="training mode"):
        to_art(smoothed(Level(2), Columns(1), 2).train(), (1, 4, 4))
    with pytest.raises(InvalidInput, match="train its base"):
        art.fit(X.numpy(), np.zeros(6))

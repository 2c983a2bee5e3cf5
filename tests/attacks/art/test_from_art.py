"""The bridge to ART: its attacks on our classifiers, judged like ours; its classifiers under our attacks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from attacks import PatchPGD, judge
from attacks.art.from_art import FromART, as_module, claimed_corners
from attacks.art.models import Scores
from robustpatch.ablations.kinds import Blocks, Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, TopOne
from tests.attacks.toys import Level, Lookup, Plain, images, judged, labels, smoothed

SIZE = (5, 6)
PGD = FromART.pgd(steps=3, tries=2)
PATCH = FromART.patch(steps=2, tries=2, side=1)


def seed(value=0):
    return torch.Generator().manual_seed(value)


def test_two_patches():
    """Masks may be of several rectangles, ART's own patch may not."""
    model, threat = Plain(30).eval(), PatchThreat(2, 2, 2)
    assert judged(PGD, model, images(2, SIZE), threat)[1].contained.all()
    with pytest.raises(InvalidInput, match="puts down one"):
        judged(PATCH, model, images(2, SIZE), threat)


def test_a_patch_larger_than_it_says_is_out_of_the_threat():
    """ART draws a 2x2 patch of a 9x9 image 3 pixels wide: the image is changed, and nothing is broken."""
    model, x, threat = Plain(81).eval(), images(6, (9, 9)), PatchThreat(2, 2)
    y = labels(model, x)
    proposal, outcome = judged(FromART.patch(steps=8, step=0.3, tries=4), model, x, threat)
    changed = (proposal.x_adv != x)[:, 0].flatten(1).sum(dim=1)
    assert (changed > 4).any()
    assert torch.equal(outcome.contained, changed <= 4)
    assert ((labels(model, proposal.x_adv) != y) & ~outcome.contained).any()
    assert not (outcome.broken & ~outcome.contained).any()
    assert judged(FromART.patch(steps=2, tries=4, side=1), model, x, threat)[1].contained.all()


@pytest.mark.parametrize(
    ("rows", "columns", "corner"),
    [
        ((1, 2), (2, 4), (1, 2)),  # where it was asked
        ((0, 0), (3, 3), (0, 2)),  # moved no further than needed
        ((3, 4), (4, 5), (3, 3)),
        ((4, 4), (0, 1), (3, 0)),
        ((0, 2), (2, 2), (1, 2)),  # too high for any: as asked
        ((1, 1), (0, 3), (1, 2)),  # too wide
    ],
)
def test_the_claim_covers_the_change(rows, columns, corner):
    """Asked for 2x3 at (1, 2): the nearest rectangle of that size around all that changed, if there is one."""
    x = torch.zeros(2, 1, *SIZE)
    x_adv = x.clone()
    x_adv[0, 0, rows[0], columns[0]] = x_adv[0, 0, rows[1], columns[1]] = 1
    claimed = claimed_corners(x, x_adv, torch.tensor([[[1, 2]], [[1, 2]]]), PatchThreat(2, 3))
    assert claimed.tolist() == [[list(corner)], [[1, 2]]]


def test_an_attack_that_knows_no_mask_is_out_of_the_threat():
    """APGD takes `mask` for its start alone, and leaves; shown only what lies inside, it stays."""
    from art.attacks.evasion import AutoProjectedGradientDescent

    model, x, threat = Plain(30).eval(), images(4, SIZE), PatchThreat(2, 2)
    build = partial(AutoProjectedGradientDescent, eps=1.0, max_iter=3, nb_random_init=1, verbose=False)
    left = FromART(build=build, kind="mask", tries=1)
    assert left.name == "art-AutoProjectedGradientDescent"
    proposal, outcome = judged(left, model, x, threat)
    assert (labels(model, proposal.x_adv) != labels(model, x)).any()
    assert not outcome.contained.any()
    assert not outcome.broken.any()
    assert judged(replace(left, kind="content"), model, x, threat)[1].contained.all()


@pytest.mark.parametrize("attack", [FromART.pgd(steps=10, step=0.3), FromART.apgd(steps=10)])
def test_it_breaks_a_smoothed_classifier(attack):
    """Ten steps raise the pixels of every strip at once, where the patch covers them."""
    model, x, threat = smoothed(Level(2), Columns(1), 2, Threshold(0.5)), torch.zeros(3, 1, 1, 9), PatchThreat(1, 9)
    for each in (attack, attack.unpruned(None)):
        assert judged(each, model, x + 0.2, threat)[1].broken.all()


def test_it_breaks_the_shipped_classifier():
    """Some image of the sample, and none that is certified."""
    model = SmoothedClassifier.from_pretrained("mnist-columns2")
    x, y = load_images("mnist-sample").batch([3, 8])
    threat = PatchThreat(8, 8)
    proposal = FromART.pgd(steps=10, step=0.25, tries=4)(model, x, y, threat, generator=seed())
    outcome = judge(model, x, y, threat, proposal)
    assert outcome.contained.all()
    assert outcome.broken.any()
    assert not (outcome.broken & model.certify(x, threat).certified).any()


def test_evaluations_of_a_bare_classifier():
    """One for each image scored, one more for each that a gradient was taken of."""
    model, x, rows = Plain(30).eval(), images(2, SIZE), []
    y = labels(model, x)
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0]) * (1 + inputs[0].requires_grad)))
    proposal = PGD(model, x, y, PatchThreat(1, 1), generator=seed())
    assert int(proposal.evaluations.sum()) == sum(rows)


def test_the_budget_is_kept():
    """No run of ART begins beyond it; what the first costs says how many go together afterwards."""
    model, x, threat = smoothed(Lookup(0, 60, 3, favour=9.0), Columns(2), 3), images(2, SIZE), PatchThreat(1, 1)
    attack = replace(FromART.pgd(steps=3, tries=50), touched_only=False)
    once = judged(replace(attack, budget=7), model, x, threat)[0].evaluations - 6
    spent = judged(replace(attack, budget=400), model, x, threat)[0].evaluations
    assert (spent >= 400).all()
    assert (spent < 400 + once).all()


@pytest.mark.parametrize("voting", [Threshold(0.3), TopOne()])
def test_the_scores_decide_like_predict(voting):
    """Their argmax is `predict`, and their gradient does not vanish where all votes are certain."""
    model, x = smoothed(Lookup(1, 60, 3, favour=0.0), Blocks(2), 3, voting), images(64, SIZE, binary=True)
    scores = Scores(model, x)
    assert torch.equal(scores(x).argmax(dim=1), model.predict(x))
    soft = model.voting.margins(model.logits(x)).sigmoid().mean(dim=1).log_softmax(dim=1).argmax(dim=1)
    assert (soft != model.predict(x)).any()  # otherwise nothing was tested
    sure = smoothed(Level(2), Columns(2), 2, voting)
    leaf = torch.full((1, 1, *SIZE), 0.01).requires_grad_()
    torch.nn.functional.cross_entropy(Scores(sure, leaf)(leaf), torch.tensor([0])).backward()
    assert leaf.grad is not None
    assert leaf.grad.abs().sum() > 0


def test_float64_is_refused_where_float32_cannot_hold_it():
    """ART would give back other pixels than it was given."""
    model, x = Plain(30).double().eval(), images(1, SIZE).double() / 3
    with pytest.raises(InvalidInput, match="float32"):
        PGD(model, x, torch.zeros(1, dtype=torch.long), PatchThreat(1, 1), generator=seed())


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_line_of_pixels_is_refused_where_art_cannot_draw_on_it(size):
    """Its perspective is undetermined there, which would end in an error from within torchvision."""
    model, x = Plain(size[0] * size[1]).eval(), images(2, size)
    with pytest.raises(InvalidInput, match=f"images are {size[0]}x{size[1]}; ART draws patches on 2x2"):
        judged(PATCH, model, x, PatchThreat(1, 1))
    assert judged(PGD, model, x, PatchThreat(1, 1))[1].contained.all()


def test_wrong_settings():
    """The message names the setting and its value."""
    for make, message in [
        (lambda: FromART.pgd(tries=0), "tries is 0"),
        (lambda: replace(PGD, copies=0), "copies is 0"),
        (lambda: replace(PATCH, copies=2), "copies is 2"),
        (lambda: FromART.patch(side=0), "side is 0"),
        (lambda: judged(FromART.named("NoSuch"), Plain(30).eval(), images(1, SIZE), PatchThreat(1, 1)), "'NoSuch'"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            make()


def test_art_and_kornia_are_imported_late():
    """Importing the attacks and the evaluator, and naming an attack, imports neither: each takes seconds."""
    code = "import sys, attacks.art.from_art, attacks.universal; attacks.art.from_art.FromART.apgd(); "
    code += "import evaluate.audit, evaluate.attack_vs_cert; assert not {'art', 'kornia'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


class Standard(nn.Module):
    """A bare classifier, on images standardised first."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, x):
        return self.model((x - self.mean) / self.std)


def classifier(model, **options):
    from art.estimators.classification import PyTorchClassifier

    options = {"clip_values": (0, 1), "device_type": "cpu", "nb_classes": 3, "input_shape": (1, *SIZE), **options}
    return PyTorchClassifier(model=model, loss=nn.CrossEntropyLoss(), **options)


@pytest.mark.parametrize("prepared", [False, True])
def test_our_attack_on_a_classifier_of_arts(prepared):
    """Exactly the patches, and the account, of the attack on the bare module, standardised or not."""
    bare, x, threat = Plain(30).eval(), images(6, SIZE), PatchThreat(2, 2)
    model = as_module(classifier(bare, preprocessing=(0.25, 0.5) if prepared else None))
    bare = Standard(bare, 0.25, 0.5).eval() if prepared else bare
    attack = PatchPGD(steps=5, restarts=3)
    (ours, outcome), (theirs, _) = judged(attack, bare, x, threat), judged(attack, model, x, threat)
    assert outcome.broken.any()
    for name in ("x_adv", "corners", "evaluations", "visited"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_preprocessing_defences_are_honoured():
    """In torch or numpy: the values of ART's own prediction, and the gradients of its own estimate."""
    from art.defences.preprocessor import SpatialSmoothingPyTorch
    from art.defences.preprocessor.preprocessor import Preprocessor

    class Square(Preprocessor):
        def __call__(self, x, y=None):
            return x**2, y

        def estimate_gradient(self, x, grad):
            return 3 * grad

    x = images(4, SIZE)
    y = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    smooth = SpatialSmoothingPyTorch(window_size=3, channels_first=True, clip_values=(0, 1), device_type="cpu")
    for defence in (Square(), smooth):
        theirs = classifier(Plain(30).eval(), preprocessing_defences=defence, preprocessing=None)
        model, leaf = as_module(theirs), x.clone().requires_grad_()
        assert np.allclose(model(x).detach().numpy(), theirs.predict(x.numpy()), atol=1e-6)
        assert not torch.allclose(model(x), theirs.model(x), atol=1e-3)
        nn.functional.cross_entropy(model(leaf), torch.from_numpy(y).argmax(dim=1)).backward()
        assert leaf.grad is not None
        assert np.allclose(leaf.grad.numpy(), theirs.loss_gradient(x.numpy(), y), atol=1e-6)


def test_both_ways_at_once():
    """ART's attack on ART's classifier, through us, is judged like any other."""
    model = as_module(classifier(Plain(30).eval()))
    _, outcome = judged(FromART.pgd(steps=10, tries=4), model, images(6, SIZE), PatchThreat(3, 3))
    assert outcome.contained.all()
    assert outcome.broken.any()


def test_modes_are_arts_own():
    """The model's mode is taken over and not changed; in training mode the attack is refused."""
    bare = Plain(30)
    theirs = classifier(bare)
    bare.train()
    model = as_module(theirs)
    assert bare.training
    with pytest.raises(InvalidInput, match="training mode"):
        PGD(model, images(1, SIZE), torch.zeros(1, dtype=torch.long), PatchThreat(1, 1), generator=seed())
    bare.eval()
    assert not as_module(theirs).training


def test_classifiers_that_cannot_be_served():
    """Other ranges, layouts, kinds and shapes are refused, each with its remedy."""
    from art.defences.postprocessor import Rounded

    bare, x = Plain(30).eval(), images(2, SIZE)
    for make, message in [
        (lambda: as_module(bare), "is a Plain"),
        (lambda: as_module(classifier(bare, clip_values=(0, 255))), r"clip_values=\(0, 1\)"),
        (lambda: as_module(classifier(bare, clip_values=None)), "clip_values are None"),
        (lambda: as_module(classifier(bare, channels_first=False)), "channels_first is False"),
        (lambda: as_module(classifier(bare, postprocessing_defences=Rounded())), "postprocessing_defences"),
        (lambda: as_module(classifier(bare, input_shape=(1, 6, 5)))(x), "input_shape"),
        (lambda: as_module(classifier(bare, nb_classes=4))(x), "nb_classes is 4"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            make()

"""The universal patch: prints within their rectangle, files, training that reaches its aim, and what transfers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from attacks import judge
from attacks.search import Search
from attacks.universal import Poses, Universal, UniversalPatch, train_and_transfer, train_patch
from robustpatch.ablations.kinds import Columns
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import load_images
from robustpatch.defenses import parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold
from tests.attacks.toys import Level, Plain, images, run, smoothed

SIZE = (5, 6)
WILD = Poses(rotation=180.0, scale=(0.3, 1.0), brightness=1.0)
STILL = Poses(rotation=0.0, scale=(1.0, 1.0), brightness=0.0)
FEW = Universal(steps=3, rows=4, tries=3, poses=WILD)


class Mean(torch.nn.Module):
    """Class k for a mean brightness near k / 10: a bright patch raises it, a dark one lowers it."""

    num_classes = 3

    def forward(self, x):
        return -((10 * x.mean(dim=(1, 2, 3))[:, None] - torch.arange(3)) ** 2)


def seed(value=0):
    return torch.Generator().manual_seed(value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 3), (3, 2), (4, 4), (5, 6)])
def test_prints_stay_in_their_rectangle(size, channels):
    """Any size up to the whole image, any pose: nothing else changes, values are in [0, 1], the centre is covered."""
    patch = UniversalPatch(torch.rand(channels, *size, generator=seed()), poses=WILD)
    threat = PatchThreat(*size)
    corners = threat.placements(*SIZE)[:, None].repeat(4, 1, 1)
    x = images(len(corners), SIZE, channels)
    before = x.clone()
    out = patch.apply(x, corners, generator=seed(1))
    inside = threat.footprint(corners, *SIZE)[:, None].expand_as(x)
    assert torch.equal(out[~inside], x[~inside])
    assert ((out >= 0) & (out <= 1)).all()
    centre = corners[:, 0] + torch.tensor(size) // 2
    each = torch.arange(len(x))
    if size[0] % 2 and size[1] % 2:
        assert (out != x)[each, :, centre[:, 0], centre[:, 1]].any(dim=1).all()
    assert torch.equal(x, before)


def test_two_prints_of_one_patch():
    """Where two rectangles overlap the last one shows; both are left to the threat of two patches."""
    patch = UniversalPatch(torch.tensor([[[0.25, 0.75]]]))
    out = patch.apply(torch.zeros(1, 1, 1, 4), torch.tensor([[[0, 0], [0, 1]]]))
    assert torch.equal(out[0, 0, 0], torch.tensor([0.25, 0.25, 0.75, 0.0]))


def test_without_a_generator_it_is_the_patch_itself():
    """To the bit, so that what was trained is what is measured."""
    patch = UniversalPatch(torch.rand(1, 3, 4, generator=seed()))
    out = patch.apply(torch.zeros(1, 1, *SIZE), torch.tensor([[[1, 2]]]))
    assert torch.equal(out[0, :, 1:4, 2:6], patch.content)


def test_poses_turn_shrink_and_brighten():
    """A quarter turn permutes the pixels, a smaller print lets the image show through, brightness adds."""
    from attacks.universal_patch import draw

    content = torch.arange(9.0).reshape(1, 3, 3) / 16
    x, corners = torch.full((3, 1, 3, 3), 0.9), torch.zeros(3, 1, 2, dtype=torch.long)
    turned, small, bright = draw(content, x, corners, torch.tensor([[90.0, 1, 0], [0.0, 0.34, 0], [0.0, 1, 0.25]]))
    assert torch.allclose(turned, content.rot90(1, (1, 2)), atol=1e-5)
    assert (small == 0.9).sum() == 8
    assert torch.isclose(small[0, 1, 1], content[0, 1, 1])
    assert torch.allclose(bright, content + 0.25)


def test_poses_are_drawn_within_their_ranges():
    """Both ends are approached and never passed."""
    poses = Poses(30.0, (0.5, 0.8), 0.2).draw(2000, seed())
    low, high = poses.amin(dim=0), poses.amax(dim=0)
    assert torch.allclose(low, torch.tensor([-30, 0.5, -0.2]), atol=0.1)
    assert torch.allclose(high, torch.tensor([30, 0.8, 0.2]), atol=0.1)
    assert (low >= torch.tensor([-30, 0.5, -0.2])).all()
    assert (high <= torch.tensor([30, 0.8, 0.2])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_holds_the_patch(tmp_path, channels):
    """Content, target and poses come back as they were; the file is 8-bit grey or RGB."""
    model = Plain(30 * channels).eval()
    x = images(4, SIZE, channels)
    y = model(x).argmax(dim=1)
    threat = PatchThreat(2, 3)
    patch = train_patch(model, x, y, threat, target=1, steps=2, rows=2, poses=WILD, generator=seed())
    patch.save(tmp_path / "patch.png")
    again = UniversalPatch.load(tmp_path / "patch.png")
    assert torch.equal(patch.content, again.content)
    assert (again.target, again.poses, again.evaluations) == (1, WILD, patch.evaluations)
    with Image.open(tmp_path / "patch.png") as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L" if channels == 1 else "RGB", (3, 2))
    given = Universal(patch=str(tmp_path / "patch.png"), tries=2)
    first, second = run(given, model, x, threat, y), run(replace(given, patch=patch), model, x, threat, y)
    assert given.name == "universal-to-1"
    assert torch.equal(first.x_adv, second.x_adv)
    assert repr(UniversalPatch(patch.content.bfloat16())) != repr(UniversalPatch(patch.content))
    assert repr(given) == repr(replace(given, patch=patch))  # as a run is told from others: by what the file holds
    patch.content[0, 0, 0] = 1 - patch.content[0, 0, 0].round()
    patch.save(tmp_path / "patch.png")
    assert repr(given) != repr(replace(given, patch=str(tmp_path / "patch.png")))


def test_any_png_will_do(tmp_path):
    """An image from elsewhere, with transparency, is a colour patch without a target."""
    Image.new("RGBA", (4, 3), (255, 0, 0, 128)).save(tmp_path / "red.png")
    patch = UniversalPatch.load(tmp_path / "red.png")
    assert patch.target is None
    assert torch.equal(patch.content, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 3, 4))


def test_no_such_patch(tmp_path):
    """A missing file and one that is no PNG are refused by name."""
    (tmp_path / "text.png").write_text("no image")
    for name in ("missing.png", "text.png"):
        with pytest.raises(InvalidInput, match=name):
            Universal(patch=tmp_path / name)  # before any image is attacked
    with pytest.raises(InvalidInput, match="2 channels"):
        UniversalPatch(torch.zeros(2, 3, 3)).save(tmp_path / "two.png")


@pytest.mark.parametrize("target", [0, 2])
def test_a_targeted_patch_reaches_its_target(target):
    """Bright or dark, whichever the target needs, on images it was not trained on too."""
    model = Mean().eval()
    x = 0.1 + 0.02 * (images(40, SIZE) - 0.5)
    y = model(x).argmax(dim=1)
    assert (y == 1).all()
    training = {"target": target, "steps": 60, "rows": 8, "step": 0.05, "poses": STILL}
    patch, seen, unseen = train_and_transfer(model, x, y, PatchThreat(4, 5), generator=seed(), **training)
    assert seen.to_target == unseen.to_target == unseen.changed == 1
    assert len(seen.y) == len(unseen.y) == 20
    assert (patch.content.mean() > 0.2) == (target == 2)
    proposal = run(Universal(patch=patch), model, x, PatchThreat(4, 5), y)
    assert (model(proposal.x_adv).argmax(dim=1) == target).all()


def test_abstentions_under_a_patch_are_changes():
    """But not of a model that answers by chance."""

    class Shy(Mean):
        def predict(self, x):
            return torch.where(x.flatten(1).amax(dim=1) > 0.9, -1, self(x).argmax(dim=1))

    x, model = 0.1 + 0.02 * images(4, SIZE), Shy().eval()
    y, white = model.predict(x), UniversalPatch(torch.ones(1, 1, 1), poses=STILL)
    assert white.transfer(model, x, y, generator=seed()).changed == 1
    model.prediction_error = 0.001
    assert white.transfer(model, x, y, generator=seed()).changed == 1  # which declares nothing
    model.randomized = True
    assert white.transfer(model, x, y, generator=seed()).changed == 0


@pytest.mark.parametrize("defense", ["patchcleanser:masks=1x2,patch=1x2", "patchguard:window=1x2,voting=scores"])
def test_a_targeted_patch_against_a_defense(defense):
    """Through the views, or the ablations touched, that an attack asks of it: far more often than noise does."""
    inner = Plain(10) if "cleanser" in defense else smoothed(Plain(20), Columns(1), 3)
    model = parse_defense(defense).wrap(inner, num_classes=3).eval()
    x = images(24, (2, 5))
    training = {"target": 2, "steps": 40, "rows": 8, "poses": STILL}
    patch, _, unseen = train_and_transfer(model, x, model.predict(x), PatchThreat(2, 4), generator=seed(), **training)
    noise = replace(patch, content=torch.rand(1, 2, 4, generator=seed()))
    blind = noise.transfer(model, x[1::2], model.predict(x[1::2]), generator=seed())
    assert patch.evaluations > 2000
    assert unseen.to_target > 0.5 > 4 * blind.to_target


@pytest.mark.parametrize("pruned", [True, False])
def test_a_smoothed_classifier_is_broken(pruned):
    """Untargeted, through soft votes: every strip must rise above one half."""
    model, threat = smoothed(Level(2), Columns(1), 2, Threshold(0.5)), PatchThreat(1, 9)
    x = 0.3 * images(8, (2, 9))
    y = model.predict(x)
    assert (y == 0).all()
    attack = Universal(steps=40, rows=8, tries=2, poses=STILL)
    attack = attack if pruned else attack.unpruned(None)
    proposal = run(attack, model, x, threat, y)
    assert judge(model, x, y, threat, proposal).broken.all()


def test_transfer_is_what_predict_says():
    """Images that were wrong before are left out, the target's own images are no success; all placements count."""
    model = Mean().eval()
    x = torch.tensor([0.0, 0.1, 0.1, 0.2])[:, None, None, None].expand(4, 1, 2, 5).clone()
    y = torch.tensor([0, 1, 2, 2])
    white = UniversalPatch(torch.ones(1, 1, 1), target=1, poses=STILL)
    found = white.transfer(model, x, y, tries=3, generator=seed())
    assert found.right.tolist() == [True, True, False, True]
    assert found.prediction.tolist() == [[1] * 3, [2] * 3, [2] * 3, [2] * 3]
    assert found.changed == found.changed_once == pytest.approx(2 / 3)
    assert found.to_target == pytest.approx(1 / 2)
    assert torch.tensor(replace(found, target=None).to_target).isnan()


@pytest.mark.parametrize("touched_only", [False, True])
@pytest.mark.parametrize(("budget", "tries"), [(40, 2), (300, 12), (300, 150)])
@pytest.mark.parametrize("batch", [1, 3])
def test_training_leaves_room_for_the_tries(budget, tries, batch, touched_only, monkeypatch):
    """However long it might train: the patch is put on every image, as often as asked for or for half of the budget."""
    model, x, threat = smoothed(Level(3), Columns(2), 3), images(batch, SIZE), PatchThreat(2, 3)
    tried = []
    monkeypatch.setattr(Search, "offer", lambda _, image, *rest: tried.extend(image.tolist()))  # no success ends it
    attack = Universal(budget=budget, tries=tries, rows=32, touched_only=touched_only)
    spent = run(attack, model, x, threat).evaluations
    each = 4 if touched_only else 6
    least = min(tries, (budget - 12) // 2 // each)
    assert not model.certify(x, threat).certified.any()
    assert all(tried.count(i) >= least > 0 for i in range(batch)), tried
    assert (spent < budget + each).all()
    if tries * each < budget / 2:
        assert (spent > budget / 2).all()


def test_pruned_it_goes_where_the_certificate_leaves_it_open():
    """Not to closed placements; and nowhere, when all are closed, but for training."""
    model, x, threat = smoothed(Level(2), Columns(1), 2), torch.zeros(2, 1, *SIZE), PatchThreat(2, 2)
    assert model.certify(x, threat).certified.all()
    white = Universal(patch=UniversalPatch(torch.ones(1, 2, 2)), tries=5)
    assert (run(white, model, x, threat).visited == 0).all()
    assert (run(white.unpruned(None), model, x, threat).visited > 0).all()


def test_wrong_calls():
    """The message names the setting and its value."""
    model, x, threat = smoothed(Level(3), Columns(2), 3), images(2, SIZE), PatchThreat(2, 3)
    y = model.predict(x)
    patch = UniversalPatch(torch.zeros(1, 3, 2))
    for make, message in [
        (lambda: Universal(steps=0), "steps is 0"),
        (lambda: Universal(rows=0), "rows is 0"),
        (lambda: Universal(tries=0), "tries is 0"),
        (lambda: Universal(step=float("nan")), "step is nan"),
        (lambda: Universal(target=-1), "target is -1"),
        (lambda: Poses(rotation=200.0), "rotation is 200"),
        (lambda: Poses(scale=(0.9, 0.8)), "scale is"),
        (lambda: Poses(scale=(0.0, 1.5)), "scale is"),
        (lambda: Poses(brightness=-0.1), "brightness is -0.1"),
        (lambda: run(Universal(patch=patch), model, x, threat, y), "patch is 2x3, but the trained one has 3x2"),
        (lambda: run(Universal(target=3), model, x, threat, y), "target is 3; it must be below 3"),
        (lambda: patch.apply(images(2, SIZE, 3), torch.zeros(2, 1, 2, dtype=torch.long)), "3 channels and the patch 1"),
        (lambda: patch.apply(x, torch.tensor([[[0, 0]], [[3, 0]]])), "beyond the image"),
        (lambda: train_patch(model, x[:0], y[:0], threat, generator=seed()), "images is 0"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            make()


def test_on_the_shipped_classifier():
    """A 12x12 patch trained towards the 3 takes unseen images there, many times as often as noise does."""
    model = SmoothedClassifier.from_pretrained("mnist-columns2")
    x, y = load_images("mnist-sample").batch(range(60))
    training = {"target": 3, "steps": 40, "rows": 12, "poses": Poses(5.0, (0.9, 1.0), 0.05)}
    patch, _, unseen = train_and_transfer(model, x, y, PatchThreat(12, 12), tries=3, generator=seed(), **training)
    noise = replace(patch, content=torch.rand(1, 12, 12, generator=seed()))
    assert unseen.to_target > 0.1
    assert unseen.to_target > 4 * noise.transfer(model, x[1::2], y[1::2], tries=3, generator=seed()).to_target


def test_images_of_the_target_class_keep_the_try_that_went_furthest():
    """Towards any other class: their own is no rival."""
    model, x, threat = Plain(30).eval(), images(6, SIZE), PatchThreat(2, 3)
    y = model(x).argmax(dim=1)
    content = torch.rand(1, 2, 3, generator=seed())
    for target in y.unique().tolist():
        own = y == target
        free, aimed = (
            run(Universal(patch=UniversalPatch(content, goal), tries=9), model, x, threat, y) for goal in (None, target)
        )
        assert torch.equal(free.x_adv[own], aimed.x_adv[own])


def test_training_says_what_it_spent():
    model, x, rows = smoothed(Level(3), Columns(2), 3, chunk=1), images(3, SIZE), []
    model.check_base = lambda *_: None  # what tests the base is no part of an attack
    y = model.predict(x)
    model.base.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    patch = train_patch(model, x, y, PatchThreat(2, 3), steps=3, rows=4, generator=seed())
    assert patch.evaluations == sum(rows)

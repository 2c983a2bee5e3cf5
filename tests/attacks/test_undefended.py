"""Attacks that ignore the defense: crafted on the network inside, never told of a success, judged by the defense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from attacks import FromART, PatchPGD, SparseRS, Undefended, judge, parse_attacks
from attacks.search import Search
from evaluate import Settings, evaluate
from evaluate.report.note import budgets
from robustpatch.defenses import Defended, Defense, parse_defense
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests import toys
from tests.as_evaluator import predict
from tests.attacks.toys import Plain, images, registered, run
from tests.evaluate.calls import call, refused
from tests.evaluate.planted import image_set

SIZE = (5, 8)
THREAT = PatchThreat(2, 2)
PGD = PatchPGD(steps=6, restarts=3)


@dataclass(frozen=True)
class Deaf(Defense):
    """With `always`, one class whatever comes; else nothing is changed."""

    name: ClassVar[str] = "deaf"
    always: int = -1

    def wrap(self, network, *, num_classes) -> Defended:
        return (Defended if self.always < 0 else Same)(network, self, num_classes=num_classes).eval()


class Same(Defended):
    def forward(self, x):
        return self.network(x).detach() * 0 + torch.eye(self.num_classes)[self.defense.always]


def scene(always: int = -1):
    network = Plain(SIZE[0] * SIZE[1]).eval()
    x = images(10, SIZE)
    return Deaf(always).wrap(network, num_classes=3), x, predict(network, x)


def test_what_the_network_is_fooled_by_is_judged_by_the_defended_classifier():
    """One patch that fools the network counts where the defense does nothing, and not where it hears nothing."""
    open_, x, y = scene()
    proposal = run(Undefended(PGD), open_, x, THREAT, y)
    fooled = predict(open_.network, proposal.x_adv) != y
    assert 0 < int(fooled.sum()) < len(x)
    assert torch.equal(judge(open_, x, y, THREAT, proposal).broken, fooled)
    deaf, _, _ = scene(always=1)
    own = predict(deaf, x)
    proposal = run(Undefended(PGD), deaf, x, THREAT, own)
    assert bool((predict(deaf.network, proposal.x_adv) != own).any())
    assert not judge(deaf, x, own, THREAT, proposal).broken.any()
    assert not proposal.visited.any()  # of the defended classifier


def test_the_search_is_the_same_whatever_the_defense(monkeypatch):
    """Neither its gradients nor its answers reach the attack: equal proposals, and `predict` of it is never asked."""
    (open_, x, y), (deaf, _, _) = scene(), scene(always=2)
    first = run(Undefended(PGD), open_, x, THREAT, y)
    for kind in (Defended, Same):
        monkeypatch.setattr(kind, "predict", lambda *_: pytest.fail("the defense was asked"))
    second = run(Undefended(PGD), deaf, x, THREAT, y)
    assert torch.equal(first.x_adv, second.x_adv)
    assert torch.equal(first.corners, second.corners)


def test_all_steps_are_spent_and_the_most_confident_error_is_proposed():
    """No climb ends at a first success: 2·steps + 1 evaluations a restart, and the least lead of y of any iterate."""
    model, x, y = scene()
    seen: dict[bytes, float] = {}
    original = Search.offer

    def offer(search, image, corners, x_adv, value, hit):
        for i, one in zip(image.tolist(), value.tolist(), strict=True):
            key = search.x[i].numpy().tobytes()
            seen[key] = min(seen.get(key, float("inf")), one)
        original(search, image, corners, x_adv, value, hit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "offer", offer)
        proposal = run(Undefended(PGD), model, x, THREAT, y)
    assert proposal.evaluations.tolist() == [3 * 13] * len(x)
    scores = model.network(proposal.x_adv)
    lead = scores.gather(1, y[:, None])[:, 0] - scores.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    assert lead.tolist() == pytest.approx([seen[image.numpy().tobytes()] for image in x], abs=1e-5)


def test_a_network_that_is_shown_hidden_pixels_sees_that_none_is():
    """PatchCleanser with a mask channel: one more channel of ones, behind which the attack takes from the lead."""
    network = toys.linear(channels=2)
    model = parse_defense("patchcleanser:hidden=mask").wrap(network, num_classes=toys.CLASSES).eval()
    assert model.defense.encoding is not None
    x = toys.images(4)

    def lead(some):
        first, second = network(torch.cat([some, torch.ones_like(some)], dim=1)).topk(2, dim=1).values.unbind(dim=1)
        return first - second

    y = network(torch.cat([x, torch.ones_like(x)], dim=1)).argmax(dim=1)
    proposal = run(Undefended(PatchPGD(steps=20, restarts=9)), model, x, THREAT, y)
    assert (lead(proposal.x_adv) < lead(x) - 0.01).all()
    proposal = run(Undefended(PatchPGD(steps=20, restarts=9)), model, x, PatchThreat(5, 6), y)
    fooled = network(torch.cat([proposal.x_adv, torch.ones_like(x)], dim=1)).argmax(dim=1) != y
    assert fooled.any()


@pytest.mark.parametrize("name", registered())
def test_any_attack_can_ignore_the_defense(name):
    """Inside the threat, deterministic, nothing written to."""
    attack = registered(steps=2, tries=2, restarts=2, queries=20, members=1)[name]
    attack = Undefended(attack.unpruned(30))
    model, x, y = scene()
    before = x.clone()
    first, second = run(attack, model, x[:2], THREAT, y[:2]), run(attack, model, x[:2], THREAT, y[:2])
    assert torch.equal(first.x_adv, second.x_adv)
    outcome = judge(model, x[:2], y[:2], THREAT, first)
    assert name == "art-patch" or outcome.contained.all()  # ART's patch is not where it says: the judge sees to it
    assert outcome.in_range.all()
    assert torch.equal(x, before)
    assert not attack.touched_only


def test_it_is_named_with_its_number_steps_and_budget():
    """Beside the attack itself; the report finds the budget of what is inside."""
    found = parse_attacks("undefended:pgd:3,pgd:3,undefended:quick", steps=4, budget=500)
    assert [attack.name for attack in found] == ["undefended-pgd-3", "pgd-3", "undefended-quick"]
    assert found[0] == Undefended(PatchPGD(restarts=3, steps=4, budget=500))
    assert budgets({"attacks": [repr(attack) for attack in found]}) == [500, 500, 500]
    unpruned = found[0].unpruned(70)
    assert unpruned == Undefended(PatchPGD(restarts=3, steps=4, budget=70, touched_only=False))


@pytest.mark.parametrize("text", ["undefended:", "undefended", "undefended:none", "undefended:undefended:pgd"])
def test_texts_that_name_no_attack(text):
    with pytest.raises(InvalidInput, match=r"is none; known are .*undefended:ATTACK"):
        parse_attacks(text)


def test_without_a_defense_it_is_refused_before_anything_is_done(tmp_path):
    """By the runner, by the command line, and by the attack; two of them around one attack, and a threat it cannot."""
    model, x, y = scene()
    with pytest.raises(InvalidInput, match="there is none around a Plain; put one there with --defense, or use pgd-3"):
        run(Undefended(PGD), model.network, x, THREAT, y)
    data = image_set(x, y, 3)
    with pytest.raises(InvalidInput, match="there is none around a Plain"):
        evaluate(model.network, data, THREAT, [Undefended(PGD)], Settings(4), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    refused(call("--checkpoint", "mnist-undefended", "--attacks", "undefended:pgd:1"), "undefended-pgd-1 ignores")
    with pytest.raises(InvalidInput, match="twice"):
        Undefended(Undefended(PGD))
    with pytest.raises(InvalidInput, match="use a masked attack"):
        Undefended(FromART.patch()).check(PatchThreat(2, 2, 2))


def test_the_command_line_holds_both_against_each_other(tmp_path):
    """A defense around the shipped network: one run has the attack that ignores it and the one that does not."""
    given = ("--checkpoint", "mnist-undefended", "--defense", "lgs:factor=1.0", "--num-images", 4, "--steps", 3)
    result = call(*given, "--attacks", "undefended:pgd:1,pgd:1", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert "under undefended-pgd-1" in result.stdout
    assert "under pgd-1" in result.stdout


def test_evaluations_are_the_network_s():
    """Whatever the defense costs, what is climbed is the network alone; the black box pays for its queries alike."""
    model, x, y = scene()
    costly = parse_defense("watermarking").wrap(model.network, num_classes=3).eval()
    for attack in (PGD, SparseRS(queries=10)):
        found = [run(Undefended(attack), one, x, THREAT, y).evaluations.tolist() for one in (model, costly)]
        assert found[0] == found[1]

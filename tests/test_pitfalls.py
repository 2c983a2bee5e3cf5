"""Where each item of the list of pitfalls is held, and the few that belong to no one module.

1, 2, 3 (off by one, wrap, stride): test_touched.test_any_geometry_equals_the_oracle, test_kinds.
4 (ties against the wrong rival): test_exact_cases.test_a_tie_is_lost_to_a_lower_index, ..._every_tied_rival.
5 (only the runner-up): test_exact_cases.test_a_third_class_can_be_lifted, test_exact.
6, 7 (height and width swapped): test_touched (8×24, 24×8; 2×6, 6×2), test_a_patch_is_not_its_transpose here.
8 (repeated or wider masks): test_kinds.test_masks_are_distinct_and_equally_large_at_stride_1.
9 (affected ≥ N, sizes): test_exact_cases, test_refusals.test_sizes_that_do_not_fit, test_kinds, test_rectangle.
10, 14 (channels, preprocessing): test_one_pixel_reaches_the_touched_ablations_alone here.
11 (inputs written, order): test_smoothed.test_inputs_are_never_written, test_an_index_selects_ablations.
12 (predict against certify): test_smoothed.test_forward_predict_and_certify_agree.
13 (training mode, coupling): test_refusals.test_training_mode, test_bases_that_couple_... (two), test_base_check.
15 (NaN through masks): test_refusals.test_hidden_pixels_never_reach_a_score, test_encoding.
16, 24 (narrow counters, TF32): test_exact_cases.test_three_hundred_votes_do_not_wrap, test_smoothed,
    test_precision.test_each_switch_of_a_gpu_is_read.
17 (batch, chunk, dtype): test_smoothed.test_chunks_change_no_vote, test_other_precisions, test_rules (close votes),
    test_same_votes (compiled, two processes).
18 (> against >=): test_rules.test_the_threshold_is_met_by_equality.
19 (caches): test_refusals.test_what_was_checked_is_not_taken_for_something_else.
20 (NULL as a colour): test_encoding.test_null_is_no_colour.
21 (one-pass bases): test_base_check, test_vit, test_refusals.test_one_pass_bases_that_see_too_much, networks.
22 (the checker leans on the checked): no oracle uses a closed form; proof.test_verifier_forgeries.
23 (saturation): test_rules.test_log_odds_is_finite_with_a_gradient_in_saturation, test_confident_... here.
29 (a patch that overflows): test_silence, defenses/test_no_numbers, attacks/test_no_numbers.
30 (memory of a passed check): test_base_check_memory, test_state_digest.
31 (kernels that lie): test_convolution, test_calibration, test_training_numbers, evaluate.test_float32,
    test_a_kernel_that_agrees_with_itself here.
"""

from __future__ import annotations

import pytest
import torch

from robustpatch import InvalidInput, calibrate_guard
from robustpatch.ablations.kinds import Blocks, Columns, Rows
from robustpatch.certificates.exact import certify_votes
from robustpatch.threats.rectangle import PatchThreat
from robustpatch.voting.rules import Threshold, Votes
from tests import lying, oracles, toys

MODELS = {
    "columns:2": lambda: toys.smoothed(toys.linear(6)),
    "rows:3/2": lambda: toys.smoothed(toys.linear(6), Rows(3, 2)),
    "blocks:2x3": lambda: toys.smoothed(toys.linear(6), Blocks(2, 3)),
    "columns:3/3": lambda: toys.smoothed(toys.strip(Columns(3, 3), in_channels=3), Columns(3, 3)),
    "columns:3": lambda: toys.smoothed(toys.strip(Columns(3), in_channels=3), Columns(3)),
}


@pytest.mark.parametrize("text", list(MODELS))
@pytest.mark.parametrize("channel", [0, 2])
def test_one_pixel_reaches_the_touched_ablations_alone(text, channel):
    """Items 10 and 14: change one channel of each pixel in turn; the ablations that change are those that keep it."""
    model, x = MODELS[text](), toys.images(1, 3)
    scores, truth = model.scores(x)[0], oracles.touched(text, (1, 1), toys.SIZE)
    for number, touched in enumerate(truth):
        row, column = divmod(number, toys.SIZE[1])
        changed = x.clone()
        changed[0, channel, row, column] = 1 - changed[0, channel, row, column].round()
        moved = (model.scores(changed)[0] - scores).abs().amax(dim=1) > 1e-6
        assert set(moved.nonzero()[:, 0].tolist()) == touched


@pytest.mark.parametrize(("patch", "size"), [((2, 6), (6, 8)), ((6, 2), (6, 8)), ((2, 6), (8, 6)), ((6, 2), (8, 6))])
def test_a_patch_is_not_its_transpose(patch, size):
    """Items 6 and 7: one 2×6 attacker and one 6×2 attacker, each against the votes recounted by brute force."""
    for text, ablation in (("columns:1", Columns(1)), ("rows:1", Rows(1))):
        n = ablation.count(*size)
        cast = torch.zeros(1, n, 2, dtype=torch.bool)
        cast[..., 0] = True
        certificate = certify_votes(Votes(cast, torch.zeros_like(cast)), ablation, PatchThreat(*patch), size)
        worst = min(oracles.worst_lead(cast[0].tolist(), touched) for touched in oracles.touched(text, patch, size))
        assert int(certificate.margin) == worst


def test_a_kernel_that_agrees_with_itself():
    """Item 31: bfloat16 that gives the same wrong scores at every call is refused; so is one that lies now and then."""
    x = toys.images(2)
    for base in (lying.Wrong(toys.linear()), lying.NowAndThen(toys.linear(), 2)):
        assert calibrate_guard(toys.smoothed(base), x) < 1e-5
        with pytest.raises(InvalidInput, match="wrong kernel or an overflow"):
            calibrate_guard(toys.smoothed(base).bfloat16(), x)


def test_confident_classifiers_still_show_where_to_climb():
    """Item 23: logits 80 apart in all ablations; the gradient of `soft` in the logits is finite and not zero."""
    voting = Threshold(0.3)
    for logits in ([40.0, -40.0, 0.0], [17.0, 0.0, 0.0]):
        z = torch.tensor(logits).expand(1, 28, 3).clone().requires_grad_()
        soft = voting.soft(z).mean(dim=1)
        (gradient,) = torch.autograd.grad(soft.log()[0, 1] - soft.log()[0, 0], z)
        assert torch.isfinite(gradient).all()
        assert gradient[..., 1].abs().min() > 1e-3


def test_no_image_has_more_certified_than_correct():
    """DESIGN's first sentence on toys: every one-pixel change of every certified image leaves its prediction."""
    model = toys.smoothed(toys.strip(Columns(1)), Columns(1))
    x = toys.images(12)
    certificate = model.certify(x, PatchThreat(1, 1))
    assert certificate.certified.any()
    for row in range(toys.SIZE[0]):
        for column in range(toys.SIZE[1]):
            for value in (0.0, 1.0):
                changed = x.clone()
                changed[:, :, row, column] = value
                kept = model.predict(changed) == certificate.prediction
                assert kept[certificate.certified].all()

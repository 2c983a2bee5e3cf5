"""A wrong call ends with status 2 and one line on stderr that names parameter, value and remedy."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.evaluate.calls import call, refused

WRONG = {
    "dataset": (["--dataset", "mnits"], "dataset is 'mnits'; known are mnist-sample"),
    "patch larger": (["--patch", "29x5"], "patch 29x5 (height x width) is larger than the image, 28x28; take at most"),
    "patch text": (["--patch", "5by5"], "patch is '5by5', which is no patch; use"),
    "patch of nothing": (["--patch", "0x5"], "patch height is 0; it must be"),
    "missing file": (["--checkpoint", "nowhere.safetensors"], "checkpoint is 'nowhere.safetensors', neither a file"),
    "other ablation": (["--ablation", "columns:3"], "ablation is columns:3, but checkpoint toy.safetensors was"),
    "ablation text": (["--ablation", "stripes"], "ablation is 'stripes'; use"),
    "attack": (["--attacks", "pgd,magic"], "'magic' is none; known are"),
    "attack twice": (["--attacks", "pgd:2,pgd:2"], "names one attack twice; drop one"),
    "no restarts": (["--attacks", "pgd:0"], "restarts is 0; it must be at least 1"),
    "device": (["--device", "abacus"], "device is 'abacus', which is not to be had here"),
    "dtype": (["--dtype", "float12"], "dtype is 'float12'; use one of float32, bfloat16"),
    "theta": (["--theta", "1.5"], "theta is 1.5; the threshold must lie strictly between 0 and 1"),
    "theta nan": (["--theta", "nan"], "theta is nan; give a finite number"),
    "voting": (["--voting", "tanh:0"], "scale is 0.0 and shift 1.0; tanh(scale·x - shift) needs a positive scale"),
    "voting text": (["--voting", "loudest"], "voting is 'loudest'; use"),
    "voting and theta": (["--voting", "top1", "--theta", "0.3"], "voting is top1, a rule with its own numbers; drop"),
    "guard": (["--guard", "-1"], "guard is -1.0; it must lie in [0, 1)"),
    "no images": (["--num-images", "-1"], "num_images is -1; it must be at least 0"),
    "too many images": (["--num-images", "501"], "num_images is 501, but mnist-sample has 500 test images; take"),
    "batch size": (["--batch-size", "0"], "batch_size is 0; it must be at least 1"),
    "certified budget": (["--certified-budget", "-1"], "certified_budget is -1; it must be at least 0"),
    "budget": (["--budget", "0"], "budget is 0; it must be at least 1"),
    "steps": (["--steps", "0"], "steps is 0; it must be at least 1"),
    "count": (["--patch", "2*5x5", "--attacks", "art-patch"], "patch is 2*5x5; ART's"),
    "replay": (["--replay", __file__], "which is no counterexample"),
    "replay nothing": (["--replay", "nowhere"], "replay is nowhere, which is no counterexample"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_ends_with_status_2_and_one_line(name, checkpoint, tmp_path):
    """The line names the parameter, the value received and the remedy."""
    arguments, message = WRONG[name]
    given = ["--checkpoint", checkpoint, "--num-images", 1, "--output", tmp_path / "out", *arguments]
    refused(call(*given), message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(checkpoint):
    """`--device cuda` on a machine without one."""
    refused(call("--checkpoint", checkpoint, "--device", "cuda"), "device is 'cuda', which is not to be had here")


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_checkpoint(keep, checkpoint, tmp_path):
    """Cut off anywhere, the file is named as damaged."""
    path = tmp_path / "cut.safetensors"
    path.write_bytes(checkpoint.read_bytes()[:keep])
    refused(call("--checkpoint", path), "cut.safetensors is damaged or no safetensors file")


def test_an_output_that_holds_another_run(checkpoint, tmp_path):
    """Other options in the same folder are refused, the same ones resume."""
    given = ["--checkpoint", checkpoint, "--attacks", "none", "--num-images", 2, "--output", tmp_path]
    assert call(*given).exit_code == 0
    assert call(*given).exit_code == 0
    refused(call(*given, "--seed", 1), "holds another run (other seed); name another output")
    (tmp_path / "mine").write_text("text")
    refused(call(*given[:-1], tmp_path / "mine"), "cannot be written")


@pytest.mark.parametrize("text", [{}, [], {"threat": [5, 5, 1]}, {"threat": [0, 5, 1]}, None])
def test_a_damaged_counterexample(text, tmp_path):
    """safetensors without, or with half, a claim inside."""
    tensors = {name: torch.zeros(1, 4, 4) for name in ("x", "x_adv", "corners")}
    save_file(tensors, tmp_path / "odd", metadata=None if text is None else {"counterexample": json.dumps(text)})
    refused(call("--replay", tmp_path / "odd"), "which is no counterexample")


def test_several_patches_are_attacked_by_default_and_refused_where_asked_too_much(checkpoint, tmp_path):
    """The default attacks follow the threat; naming one of ART's for one patch is refused before anything is scored."""
    shared = ("--checkpoint", checkpoint, "--num-images", 2, "--patch", "2*2x2", "--steps", 1, "--budget", 60)
    shared += ("--certified-budget", 60)
    assert call(*shared, "--output", tmp_path / "default").exit_code == 0
    refused(call(*shared, "--attacks", "pgd,art-patch", "--output", tmp_path / "asked"), "use a masked attack")
    assert not (tmp_path / "asked").exists()


def test_classes_of_other_names_or_in_another_order(checkpoint, tmp_path):
    """A folder of digits by name is in alphabetical order, eight first; what is right or wrong would be chance. The
    order said with --classes is taken at its word.
    """
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for k, name in enumerate(digits):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (28, 28), 20 * k).save(tmp_path / "photos" / name / "a.png")
    shared = ["--checkpoint", checkpoint, "--dataset", "folder", "--data-root", tmp_path / "photos", "--channels", 1]
    shared += ["--num-images", 1, "--attacks", "none"]
    found = "dataset folder has the classes eight, five, four, nine, one, …, but checkpoint"
    refused(call(*shared, "--output", tmp_path / "out"), found)
    assert not (tmp_path / "out").exists()
    given = call(*shared, "--classes", ",".join(digits), "--output", tmp_path / "out")
    assert given.exit_code == 0, given.output


def test_text_that_looks_like_markup_or_digits(checkpoint, tmp_path):
    """Brackets in a path and superscripts in a number end in the message, not in an internal error."""
    refused(call("--dataset", "folder", "--data-root", "[/x]", "--checkpoint", checkpoint), "data-root is [/x]")
    refused(call("--checkpoint", checkpoint, "--attacks", "pgd:²"), "attacks is 'pgd:²'")
    assert (
        call("--checkpoint", checkpoint, "--num-images", 1, "--steps", 1, "--output", tmp_path / "[b]").exit_code == 0
    )

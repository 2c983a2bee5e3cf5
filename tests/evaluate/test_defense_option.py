"""--defense: any defense around any checkpoint or module, in what a run notes, calls itself and shows again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from evaluate.model.identity import weights_sha256
from evaluate.model.load import as_in_run, load_model
from evaluate.runs.completed_run import read_run
from robustpatch.ablations.kinds import Columns
from robustpatch.certificates.exact import Certificate
from robustpatch.checkpoints import load_checkpoint, save_checkpoint
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.defenses import Defended, Defense, registry
from robustpatch.encoding import Fill, MaskChannel
from robustpatch.errors import InvalidInput
from robustpatch.threats import Disc
from robustpatch.voting.rules import Threshold
from tests.evaluate.calls import call, refused

QUICK = ("--attacks", "pgd:2", "--steps", 4, "--num-images", 8, "--batch-size", 4)


@dataclass(frozen=True)
class Darker(Defense):
    """Takes light away, and where `sure` certifies whatever comes."""

    name: ClassVar[str] = "darker"
    by: float = 0.5
    sure: bool = False
    hides: bool = False

    @property
    def encoding(self):
        return MaskChannel() if self.hides else None

    def wrap(self, network, *, num_classes) -> Defended:
        return (Sure if self.sure else Dark)(network, self, num_classes=num_classes)


class Dark(Defended):
    def forward(self, x):
        return self.network(x * (1 - self.defense.by))


class Sure(Dark, CertifiedClassifier):
    def certify(self, x, threat):
        none = torch.zeros(len(x), dtype=torch.long)
        return Certificate(self.predict(x), none == 0, None, None, threat, "exact", 0.0, none)


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setitem(registry.KNOWN, "darker", f"{__name__}:Darker")


def test_a_run_with_a_defense_around_a_checkpoint(undefended, tmp_path):
    """Another model than the checkpoint's, noted and named as such on the console, in run.json and in the report."""
    shared = ("--checkpoint", undefended, *QUICK)
    result = call(*shared, "--defense", "darker:by=0.75", "--output", tmp_path / "dark")
    assert result.exit_code == 0, result.output
    assert "(darker:by=0.75, no certificates)" in " ".join(result.stdout.split())
    assert call(*shared, "--output", tmp_path / "bare").exit_code == 0
    dark, bare = (read_run(tmp_path / name) for name in ("dark", "bare"))
    assert (dark.claim["defense"], dark.claim["ablation"]) == ("darker:by=0.75", None)
    assert "defense" not in bare.claim
    assert dark.claim["model_sha256"] != bare.claim["model_sha256"]
    assert dark.claim["checkpoint_sha256"] == bare.claim["checkpoint_sha256"]
    assert (dark.model, bare.model) == ("plain (darker:by=0.75)", "plain")
    report = json.loads((tmp_path / "dark" / "report.json").read_text())
    assert report["title"].endswith("(darker:by=0.75)")
    repeated = call("--config", tmp_path / "dark" / "run.toml", "--output", tmp_path / "again")
    assert repeated.exit_code == 0, repeated.output
    assert read_run(tmp_path / "again").claim == dark.claim
    refused(call(*shared, "--defense", "darker:by=0.5", "--output", tmp_path / "dark"), "holds another run")


def test_the_guard_behind_a_defense_is_said_and_measured(undefended, checkpoint, tmp_path):
    """That of the classifier inside robust masking, over batch sizes and chunks; that of PatchCleanser's logits."""
    for path, defense, said in (
        (checkpoint, "patchguard:voting=scores", "guard 0.0001, measured deviation "),
        (undefended, "patchcleanser:masks=1", "guard 0.001; "),
    ):
        output = tmp_path / defense.partition(":")[0]
        result = call("--checkpoint", path, *QUICK, "--defense", defense, "--output", output)
        assert result.exit_code == 0, result.output
        assert said in result.stdout
        measured = json.loads((output / "summary.json").read_text())["measured_deviation"]
        assert (measured is None) == (path == undefended)
        assert measured is None or 0 <= measured < 1e-4
        what = "in which the patch does not show" if measured is None else "an ablation which the patch does not touch"
        assert what in json.loads((output / "report.json").read_text())["assumption"]


def test_the_defense_of_a_run_is_the_one_that_predicts(undefended, tmp_path):
    """With all light taken away every image is of the class that the network sees in black."""
    network = load_checkpoint(undefended).model
    black = int(network(torch.zeros(1, 1, 28, 28)).argmax())
    given = ("--checkpoint", undefended, *QUICK, "--defense", "darker:by=1.0", "--output", tmp_path)
    assert call(*given).exit_code == 0
    records = read_run(tmp_path).records
    assert {record.prediction for record in records} == {black}
    assert not any(attack.broken for record in records for attack in record.attacks)


def test_a_broken_certificate_of_a_defense_is_shown_again(undefended, tmp_path):
    """The counterexample carries the defense: --replay finds the certificate that it breaks, status 1."""
    given = ("--checkpoint", undefended, *QUICK, "--defense", "darker:by=0.1,sure=True", "--output", tmp_path)
    result = call(*given)
    assert result.exit_code == 1, result.output
    for file in sorted((tmp_path / "counterexamples").iterdir()):
        again = call("--checkpoint", undefended, "--replay", file)
        assert again.exit_code == 1, again.output
        assert "the counterexample stands" in again.stdout


def test_what_ignores_a_defense_tests_no_certificate_of_it(undefended, tmp_path):
    """NOT TESTED by the attack on the bare network alone, however many evaluations it made; tested beside another."""
    shared = ("--checkpoint", undefended, "--defense", "darker:by=1.0,sure=True", "--steps", 2, "--num-images", 2)
    for attacks, verdict in (("undefended:pgd:1", "NOT TESTED"), ("undefended:pgd:1,pgd:1", "HELD")):
        result = call(*shared, "--attacks", attacks, "--output", tmp_path / verdict)
        assert result.exit_code == 0, result.output
        assert verdict in result.stdout


@pytest.mark.parametrize("defense", ["darker", "darker:by=0.25"])
@pytest.mark.parametrize(
    "votes",
    [{}, {"theta": 0.2, "guard": 0.03}, {"voting": "tanh:1.0:2.0", "guard": 0.03}],
    ids=["its own votes", "another threshold", "another rule"],
)
def test_a_smoothed_checkpoint_in_a_defense_is_built_again_from_its_note(defense, votes, checkpoint):
    """Threshold and guard act on the classifier inside, and `as_in_run` builds the same model from what is noted."""
    loaded = load_model(str(checkpoint), defense=defense, **votes)
    assert isinstance(loaded.model, Dark)
    assert isinstance(loaded.model.network, SmoothedClassifier)
    assert not loaded.model.training
    note = json.loads(json.dumps(as_classifier(loaded.model).describe()))
    assert note["defense"] == defense
    assert note["voting"] == votes.get("voting", f"threshold:{votes.get('theta', 0.3)}")
    assert note["guard"] == votes.get("guard", 1e-4)
    again = as_in_run(load_checkpoint(checkpoint), note)
    assert weights_sha256(again.requires_grad_(False)) == weights_sha256(loaded.model)


def test_a_threshold_that_a_defense_does_not_count_by_is_refused(checkpoint, tmp_path):
    given = ("--checkpoint", checkpoint, "--theta", 0.4, *QUICK, "--output", tmp_path / "out")
    refused(call(*given, "--defense", "patchguard:voting=scores"), "theta is 0.4, but patchguard:voting=scores counts")
    with pytest.raises(InvalidInput, match="voting is top1, but patchguard:voting=scores counts scores; drop --voting"):
        load_model(str(checkpoint), voting="top1", defense="patchguard:voting=scores")
    assert not (tmp_path / "out").exists()
    assert load_model(str(checkpoint), theta=0.4, defense="patchguard").model.network.voting == Threshold(0.4)


def test_encodings_that_fill_with_another_value_are_of_other_models():
    base = torch.nn.Linear(1, 2)
    models = [SmoothedClassifier(base, Columns(1), num_classes=2, encoding=Fill(value)) for value in (0.2, 0.8, 0.2)]
    first, other, again = map(weights_sha256, models)
    assert first == again != other


def test_a_defense_that_does_not_fit_is_refused(undefended, checkpoint, sparse, tmp_path):
    """An unknown one; hidden pixels for a network that knows none; around samples; a second one."""
    shared = ("--num-images", 2, "--output", tmp_path / "out")
    for path, text, said in (
        (undefended, "brighter", "defense is 'brighter'; known are"),
        (undefended, "darker:by=much", "defense darker: by is 'much'"),
        (undefended, "darker:hides=True", "which shows hidden pixels to the network by the encoding 'mask', but check"),
        (checkpoint, "darker:hides=True", "takes images as they are; train one that knows it: robustpatch train"),
        (sparse, "darker", "are samples; drop --defense, or name one without chance"),
    ):
        refused(call("--checkpoint", path, "--defense", text, *shared), said)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_a_defense_takes_no_second_one(undefended, tmp_path):
    """Whichever it is; without the option it is loaded, run and built again as it was."""
    bare = load_checkpoint(undefended)
    config = {key: value for key, value in bare.config.items() if key != "format"} | {"defense": "darker:by=0.25"}
    path = tmp_path / "dark.safetensors"
    save_checkpoint(path, Darker(by=0.25).wrap(bare.model, num_classes=10), config)
    for text in ("darker", "darker:by=0.25"):
        refused(call("--checkpoint", path, "--defense", text), f"defense is {text}, but checkpoint {path} is of darker")
    loaded = load_model(str(path))
    again = as_in_run(load_checkpoint(path), as_classifier(loaded.model).describe())
    assert weights_sha256(again) == weights_sha256(loaded.model)


def test_patchcleanser_takes_masks_of_another_size():
    """Around the network of its checkpoint, which is shown the same; and as a run noted it."""
    given = "patchcleanser:hidden=mask,patch=6x6"
    loaded, x = load_model("mnist-patchcleanser", defense=given), torch.zeros(1, 1, 28, 28)
    assert len(loaded.model.certify(x, Disc(6)).certified) == 1
    with pytest.raises(InvalidInput, match="masks are made for 5x5"):
        load_model("mnist-patchcleanser").model.certify(x, Disc(6))
    again = as_in_run(load_checkpoint("mnist-patchcleanser"), as_classifier(loaded.model).describe())
    assert again.defense == loaded.model.defense
    with pytest.raises(InvalidInput, match="trained for patchcleanser:hidden=mask,worst=4; say hidden= as there"):
        load_model("mnist-patchcleanser", defense="patchcleanser:patch=6x6")


MODULE = """
import torch
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
"""


def test_a_defense_around_a_module_of_ones_own(tmp_path, monkeypatch):
    """As around a checkpoint, with its counterexamples shown again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_own.py").write_text(MODULE)
    result = call("--model", "its_own.py:net", *QUICK, "--defense", "darker:by=0.1,sure=True", "--output", "out")
    assert result.exit_code == 1, result.output
    run = read_run("out")
    assert run.model == "its_own.py:net (darker:by=0.1,sure=True)"
    file = sorted((tmp_path / "out" / "counterexamples").iterdir())[0]
    again = call("--model", "its_own.py:net", "--replay", file)
    assert again.exit_code == 1, again.output

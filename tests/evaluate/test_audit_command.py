"""The audit's command: statuses, errors, files that it writes and reads, one audit at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluate.audit import audit, replay
from evaluate.audit.plans import Plan
from evaluate.audit.report import verdict
from robustpatch.errors import InvalidInput
from robustpatch.threats.rectangle import PatchThreat
from tests.evaluate.audit_bugs import make
from tests.evaluate.audits import NAME, QUICK, Bright, audited, call
from tests.evaluate.calls import refused


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_statuses(tmp_path):
    """0 with nothing found, 1 with a counterexample that --replay shows again."""
    held = call(NAME + "sound", *QUICK, tmp_path / "held")
    assert held.exit_code == 0, held.output
    assert "HELD" in held.output
    assert "not tested" in held.output
    bad = call(NAME + "broken", *QUICK, tmp_path / "broken", "--budget", 300, "--json")
    assert bad.exit_code == 1, bad.output
    told = json.loads(bad.stdout)
    path = told["findings"][0]["path"]
    again = call(NAME + "broken", "--replay", path)
    assert again.exit_code == 1, again.output
    assert "the finding is confirmed" in again.output
    assert call(NAME + "sound", "--replay", path).exit_code == 0
    assert "attack" in (tmp_path / "broken" / "report.md").read_text()
    stored = json.loads((tmp_path / "broken" / "audit.json").read_text())
    assert (told["verdict"], stored["verdict"], stored["threat"]) == ("broken", "broken", "1x2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "both None"),
        (("nowhere:x",), "no module nowhere"),
        ((NAME + "nothing",), "has no nothing"),
        (("mnist-none",), "mnist-none"),
        (("--factory", "make"), "use FILE.py:NAME"),
        ((NAME + "sound", "--shape", "28"), "shape is '28'"),
        ((NAME + "sound", "--patch", "99x99"), "larger than the image"),
        ((NAME + "sound", "--images", 0), "images is 0"),
        (("--replay", "nowhere.safetensors"), "no finding of an audit"),
        ((NAME + "sound", "--time-limit", "0"), "time limit is 0"),
        ((NAME + "sound", "--output", "/dev/null/x"), "cannot be written"),
    ],
)
def test_wrong_calls(arguments, message, tmp_path, monkeypatch):
    """Status 2 with one line, and no folder is made."""
    monkeypatch.chdir(tmp_path)
    refused(call(*arguments), message)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_defense_by_its_name(tmp_path):
    """Attacked like any other; one that certifies nothing is refused."""
    calls = ["--images", "1", "--budget", "20", "--output", tmp_path / "out"]
    result = call("mnist-ibp", *calls)
    assert result.exit_code == 0, result.output
    assert "HELD" in result.output
    assert json.loads((tmp_path / "out" / "audit.json").read_text())["attacked"] > 0
    assert call("mnist-undefended", *calls).exit_code == 2


WRONG = """
import numpy as np


class Certifier:
    num_classes = 2

    def predict(self, x):
        return np.zeros(len(x), int)

    def certify(self, x, threat):
        return np.asarray(x)[:, 5]  # the line at fault


def maker():
    return {}["no such key"]  # the line at fault


def make(base, num_classes, image_shape):
    raise RuntimeError("not this size")  # the line at fault
"""


@pytest.mark.parametrize("named", [("{}:Certifier",), ("{}:maker",), ("--factory", "{}:make")])
def test_errors_of_ones_own_code_are_shown(named, tmp_path):
    """Status 2, with the traceback and, in the last line, the file and the line that it came from."""
    (tmp_path / "own.py").write_text(WRONG)
    done = call(*(text.format(tmp_path / "own.py") for text in named), "--output", tmp_path / "out")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "the line at fault" in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "own.py, line" in last
    assert "internal error" not in done.stderr


@pytest.mark.usefixtures("impatient")
def test_two_audits_in_one_output(tmp_path):
    """The second is refused before it asks or writes anything; once the first has gone, nothing is in the way."""
    (tmp_path / "report.md").write_text("of the other")
    other = os.open(tmp_path, os.O_RDONLY)  # as another process has it open
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(call(NAME + "broken", *QUICK, tmp_path), "where another process is at work; wait for its end")
        with pytest.raises(InvalidInput, match="where another process is at work"):
            audited(Bright("contradiction"), output=tmp_path)
    finally:
        os.close(other)
    assert files(tmp_path) == {"report.md": b"of the other"}
    assert call(NAME + "broken", *QUICK, tmp_path).exit_code == 1
    assert files(tmp_path)["report.md"] != b"of the other"


def test_a_refused_audit_leaves_the_earlier_one(tmp_path):
    """Also one that is refused by what the certifier answers."""
    assert call(NAME + "broken", *QUICK, tmp_path).exit_code == 1
    before = files(tmp_path)
    assert len(before) > 2
    refused(call(NAME + "sound", *QUICK, tmp_path, "--patch", "9x9"), "patch 9x9")

    class Declining(Bright):
        def certify(self, x, threat):
            raise InvalidInput("threat is one that this certifier knows nothing of")

    with pytest.raises(InvalidInput, match="does not certify"):
        audited(Declining(), output=tmp_path)
    assert files(tmp_path) == before


def test_no_finding_of_an_earlier_audit_is_left(tmp_path):
    """Files of an earlier audit are removed, those of somebody else are not."""
    audited(Bright("one column less"), output=tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    kept = tmp_path / "00-mine.safetensors"
    kept.write_bytes(b"not a finding")
    (tmp_path / "report.md").write_text("of the earlier one")
    audited(Bright(), output=tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_finding_is_shown_again_from_any_folder_and_names_no_code_to_run(tmp_path, monkeypatch):
    """The command is printed and in report.md, with full paths; without a certifier named, nothing is replayed."""
    (tmp_path / "own.py").write_text("from tests.evaluate.audits import Bright\nbad = Bright('contradiction')\n")
    monkeypatch.chdir(tmp_path)
    done = call("own.py:bad", *QUICK, "out")
    assert done.exit_code == 1, done.output
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("see it again: ") and "00-" in line]
    assert f"{tmp_path}/own.py:bad" in line
    assert line.split(": ", 1)[1] in (tmp_path / "out" / "report.md").read_text()
    monkeypatch.chdir("/")
    again = call(*line.split("robustpatch audit ")[1].split())
    assert again.exit_code == 1, again.output
    assert "the finding is confirmed" in again.output
    path = next((tmp_path / "out").glob("00-*.safetensors"))
    refused(call("--replay", path), f"{tmp_path}/own.py:bad --replay {path}")


def test_replay_of_a_file_of_another_version_is_refused(tmp_path):
    """A file with a finding's words that lacks what shows it is one clear line."""
    path = tmp_path / "00-x.safetensors"
    save_file({"y": torch.zeros(1)}, path, metadata={"finding": json.dumps({"check": "x"})})
    with pytest.raises(InvalidInput, match="no finding of an audit"):
        replay(path, Bright())


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_are_broken_are_left_out_and_named(channels, tmp_path):
    """A folder's images are read as elsewhere; those that cannot be used are refused, or left out."""
    for name, level in (("a", 30), ("b", 220)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(2):
            Image.new("RGB", (18, 4 + k), (level, level, level)).save(tmp_path / "photos" / name / f"{k}.png")
    (tmp_path / "photos" / "a" / "1.png").write_bytes(b"<html>")
    given = (NAME + "sound", *QUICK, tmp_path / "out", "--dataset", "folder", "--data-root", tmp_path / "photos")
    given = (*(one for one in given if one not in ("--shape", "1x2x9")), "--channels", channels)
    refused(call(*given), "b/1.png (5x18 pixels, the first has 4x18); bring all to one size with --image-size")
    given = (*given, "--image-size", "2x9")
    refused(call(*given), "1 of 4 pictures cannot be used: a/1.png (none of the formats")
    done = call(*given, "--skip-broken")
    assert done.exit_code == 0, done.output
    assert "left out: 1 of 4 pictures cannot be used: a/1.png" in done.stderr


def test_the_named_patch_comes_first(only_plans):
    """A verdict says where only others break it; its own findings come before those of others."""
    plans = [Plan((1, 5, 14), (PatchThreat(1, 4),)), Plan((1, 6, 13), (PatchThreat(2, 2),))]
    only_plans(*plans)
    options = {"threat": PatchThreat(2, 2), "image_shape": (1, 6, 13), "budget": 4}
    done = audit(factory=make("7 patch sides swapped"), **options)
    assert verdict(done).startswith(
        "2x2 patch on 1x6x13 images: no certified prediction was changed, but BROKEN for a "
    )
    assert not done.named
    done = audit(factory=make("1 off by one"), **options)
    assert verdict(done).startswith("2x2 patch on 1x6x13 images: BROKEN")
    assert done.findings[0].where == ("2x2", "1x6x13")
    told = done.as_dict()["findings"][0]
    assert (told["patch"], told["shape"]) == ("2x2", "1x6x13")

"""What an audit writes: for one audit at a time, and nothing lost by one that is refused; pictures that are broken."""

from __future__ import annotations

import fcntl
import os

import pytest
from PIL import Image
from typer.testing import CliRunner

from evaluate.audit.__main__ import app
from robustpatch.errors import InvalidInput
from tests.evaluate.calls import refused
from tests.evaluate.test_audit_target import Bright, audited

NAME = "tests.evaluate.test_audit_target:"
QUICK = ("--patch", "1x2", "--shape", "1x2x9", "--images", 8, "--budget", 20, "--output")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_audits_in_one_output(tmp_path, monkeypatch):
    """The second is refused before it asks or writes anything, and nothing is left of it."""
    monkeypatch.setattr("robustpatch.storage.locks._PATIENCE", 0.0)
    (tmp_path / "report.md").write_text("of the other")
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(call(NAME + "broken", *QUICK, tmp_path), "where another process is at work; wait for its end")
        with pytest.raises(InvalidInput, match="where another process is at work"):
            audited(Bright("contradiction"), output=tmp_path)
    finally:
        os.close(other)
    assert files(tmp_path) == {"report.md": b"of the other"}


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


def test_a_refused_audit_makes_no_folder(tmp_path):
    refused(call(NAME + "sound", *QUICK, tmp_path / "new" / "one", "--time-limit", 0), "time limit is 0")
    assert not list(tmp_path.iterdir())


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

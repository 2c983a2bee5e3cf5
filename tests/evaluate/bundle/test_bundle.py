"""A safety case from a run to its check, and what makes its evidence again."""

from __future__ import annotations

import json
import subprocess
import sys
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
from typer.testing import CliRunner

from evaluate.bundle.make import archive
from evaluate.cli.program import app
from robustpatch.proof.__main__ import main
from robustpatch.proof.bundle import ABOUT, KINDS, check, checked
from robustpatch.storage.npz import read_members
from tests.evaluate.bundle.cases import EVIDENCE, NUMBER, about_of, arrays_of, content, members_of, packed, sealed


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of four images and its safety case."""
    folder = tmp_path_factory.mktemp("bundle")
    done = call("attack-vs-cert", "--num-images", 4, "--attacks", "none", "--output", folder / "run", "--quiet")
    assert done.exit_code == 0, done.output
    done = call("bundle", folder / "run", "--output", folder / "case.zip")
    assert done.exit_code == 0, done.output
    assert "with evidence (votes)" in done.stdout
    return folder


def test_a_bundle_verifies_and_its_sample_comes_out_again(place):
    """By the command, with the digest that making it printed, and by numpy alone."""
    digest = check(place / "case.zip").digest
    done = call("verify", place / "case.zip", "--sample", 2, "--draw", 1, "--digest", digest)
    assert done.exit_code == 0, done.output
    assert "the evidence of 2 of 3 images made again" in done.stdout
    assert "1%: 0.33, 2%: 0.33" in done.stdout
    assert done.stdout.splitlines()[-1] == "all of it is as in the bundle"
    refused = call("verify", place / "case.zip", "--digest", "0" * 64)
    assert refused.exit_code == 2
    assert "it is another" in refused.stderr


def test_numpy_alone_is_needed(place):
    """Neither torch nor anything else that is large is imported."""
    code = (
        "import sys; from robustpatch.proof.__main__ import main; status = main(['verify', sys.argv[1]]); "
        "print({'torch', 'scipy', 'pyarrow', 'pydantic', 'pickle5'} & set(sys.modules)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, place / "case.zip"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["every claim that is said to have evidence follows from it", "set()"]


def test_false_votes_are_found_by_the_model(place):
    """Votes that prove what is claimed, but are not the model's."""
    members = read_members(place / "case.zip", 2**28)
    name = next(name for name in members if name.startswith("evidence"))
    evidence = arrays_of(members[name])
    shape, certified = evidence["shape"], np.nonzero(evidence["certified"])[0]
    cast = np.unpackbits(evidence["cast"])[: np.prod(shape)].reshape(shape)
    cast[certified, 0] = 0
    cast[certified, 0, evidence["prediction"][certified]] = 1  # one vote more for what is predicted anyway
    cast[certified, 1] = cast[certified, 0]
    forged = {**members, name: packed({**evidence, "cast": np.packbits(cast)})}
    about = about_of(members)
    kept = {own: one for own, one in forged.items() if own not in (ABOUT, "CASE.md", "images.npz", name)}
    told = {own: about[own] for own in ("run", "options", "circumstances", "evidence", "without")}
    path = place / "forged.zip"
    path.write_bytes(archive(told, arrays_of(members["images.npz"]), {name: forged[name]}, kept))
    assert call("verify", path).exit_code == 0
    done = call("verify", path, "--sample", 3)
    assert done.exit_code == 1, done.output
    assert "votes are others" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_without_evidence_are_named(kind):
    """What is certified and not proved is counted apart, and said."""
    members, about = members_of(kind), about_of(members_of(kind))
    images = arrays_of(members["images.npz"])
    images["proved"] = images["proved"] & (np.arange(NUMBER) != 0)
    found = checked(read_members(sealed(members, {**about, "without": "lost"}, images), 2**28))
    assert found.wrong == []
    assert found.about["numbers"]["proved"] == about["numbers"]["proved"] - 1
    text = read_members(sealed(members, {**about, "without": "lost"}, images), 2**28)["CASE.md"].decode()
    assert "**Claimed without evidence**: 1 certificates (images 0). lost" in text
    assert checked(read_members(sealed(members, about, images), 2**28)).wrong


def test_what_is_no_bundle(tmp_path, capsys):
    """Bombs, archives in archives and files of other kinds end in status 2 and one line."""
    honest = tmp_path / "honest.zip"
    honest.write_bytes(content("votes"))
    assert main(["verify", str(honest)]) == 0
    capsys.readouterr()
    members = members_of("votes")
    deep = json.dumps(about_of(members)).replace('"toys"', "[" * 9_000 + "]" * 9_000)
    bombs = {
        "large": {**members, "report.html": b"\0" * 2**21},
        "deep": {**members, ABOUT: deep.encode()},
        "long": {**members, ABOUT: b" " * (2**22 + 1)},
        "many": {**members, **{f"a{n}": b"" for n in range(2**12)}},
        "inner": {**members, EVIDENCE: honest.read_bytes()},
    }
    for name, some in bombs.items():
        with ZipFile(tmp_path / "bomb.zip", "w", ZIP_DEFLATED) as bomb:
            for own, one in sorted(some.items(), key=lambda pair: pair[0] != ABOUT):
                bomb.writestr(own, one)
        assert main(["verify", str(tmp_path / "bomb.zip")]) == 2, name
        assert len(capsys.readouterr().err.splitlines()) == 1
        done = call("verify", tmp_path / "bomb.zip")
        assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        read_members(honest, 1_000)
    with pytest.raises(ValueError, match="takes more than -1e-09 seconds"):
        check(honest, seconds=-1e-9)


def test_runs_that_name_code_are_loaded_by_the_user_alone(place):
    """A run.toml that names a model runs nothing."""
    options = place / "run" / "run.toml"
    before = options.read_text()
    options.write_text(before + 'model = "spy.py:model"\n')
    try:
        done = call("bundle", place / "run", "--output", place / "other.zip")
    finally:
        options.write_text(before)
    assert done.exit_code == 2
    assert "a file names no code to run: name the model, if you trust it, with --model" in done.stderr
    assert call("bundle", place / "run", "--output", place / "other.txt").exit_code == 2
    assert not (place / "other.zip").exists()

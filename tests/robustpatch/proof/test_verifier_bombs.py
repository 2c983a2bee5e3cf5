"""Proof files that are damaged as archives, or made to cost the reader: refused in one line, soon, in little memory."""

from __future__ import annotations

import io
import random
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

import robustpatch
from robustpatch.proof import masks
from robustpatch.proof import verifier as proof
from robustpatch.proof.footprints import listed
from tests.robustpatch.forgeries import Members, header, honest, npy, packed, replaced

ROOT = Path(robustpatch.__file__).parents[1]
# A process of its own, that may use so much memory and no more.
LIMITED = (
    "import resource, runpy, sys\n"
    "resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))\n"
    "runpy.run_module('robustpatch.proof', run_name='__main__')"
)


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Members:
    return honest("columns", tmp_path_factory.mktemp("honest") / "honest.npz")


def verified(path: Path, seconds: float = 60) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command line."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "verify", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=seconds
    )
    return done.returncode, done.stdout, done.stderr


def refused(path: Path) -> str:
    """The one line on stderr."""
    status, out, err = verified(path)
    assert (status, out, err.count("\n")) == (2, "", 1), (status, out, err)
    assert len(err) < 1500
    return err


def deflated(size: int, before: bytes = b"") -> bytes:
    """`before` and so many MiB of zeros, deflated."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = press.compress(before) + press.flush(zlib.Z_FULL_FLUSH)
    block = press.compress(bytes(2**20)) + press.flush(zlib.Z_FULL_FLUSH)  # says nothing of what was before
    return start + block * size + press.flush()


def archive(entries: list[tuple[str, bytes, int, int]]) -> bytes:
    """A zip of names, deflated contents, and what they are said to be: length and checksum."""
    content, directory, at = [], [], 0
    for name, data, length, crc in entries:
        about = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 33, crc, len(data), length, len(name), 0)
        start = struct.pack("<HHHLL", 0, 0, 0, 0, at)
        directory.append(b"PK\1\2\x14\0" + about + start + name.encode())
        content.append(b"PK\3\4" + about + name.encode() + data)
        at += len(content[-1])
    size, number = sum(map(len, directory)), len(entries) % 2**16
    return b"".join([*content, *directory, b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, number, number, size, at, 0)])


def entries(members: Members) -> list[tuple[str, bytes, int, int]]:
    found = []
    for name, one in members:
        plain = one if isinstance(one, bytes) else npy(one)
        found.append((f"{name}.npy", zlib.compress(plain, 9, -15), len(plain), zlib.crc32(plain)))
    return found


def test_archives_made_by_hand_verify_where_they_are_true(members, tmp_path):
    (tmp_path / "proof.npz").write_bytes(archive(entries(members)))
    status, out, err = verified(tmp_path / "proof.npz")
    assert (status, err) == (0, ""), err
    assert "certified against 1x2" in out


@pytest.mark.parametrize("name", ["cast", "claim", "margin", "certified"])
def test_a_bomb_is_not_decompressed(members, name, tmp_path):
    """4 GiB of zeros in 4 MB: with an honest header, none, or a length that is a lie; within 3 GiB of address space."""
    kind = {"margin": "<i8", "certified": "|b1"}.get(name, "|u1")
    shape = f"({2**32 // np.dtype(kind).itemsize},)"
    start = header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n")
    short = header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (7,), }}\n")
    for before, said in ((start, None), (b"", None), (short, None), (short, len(short) + 7 * np.dtype(kind).itemsize)):
        data, length = deflated(4095, before), 4095 * 2**20 + len(before) if said is None else said
        own = [(f"{name}.npy", data, length, 0) if one[0] == f"{name}.npy" else one for one in entries(members)]
        (tmp_path / "bomb.npz").write_bytes(archive(own))
        assert f"{name}.npy" in refused(tmp_path / "bomb.npz")


def test_a_table_of_contents_is_not_read_at_length(members, tmp_path):
    """Half a million members, and as many hidden by a count that overflows."""
    one = ("a", b"\3\0", 0, 0)
    for more in (2**19, 2**16 - 7):
        (tmp_path / "many.npz").write_bytes(archive([*entries(members), *[one] * more]))
        assert "table of contents" in refused(tmp_path / "many.npz")


def test_layers_of_archives_are_not_opened(members, tmp_path):
    inner = packed([("cast", packed(members)), *[one for one in members if one[0] != "cast"]])
    (tmp_path / "nested.npz").write_bytes(inner)
    assert "cast.npy" in refused(tmp_path / "nested.npz")


@pytest.mark.parametrize(
    "claim",
    [
        {"ablation": "20*grid-blocks:1", "image_size": [200, 200]},
        {"ablation": "1199*grid-columns:1", "image_size": [1, 1200]},
        {"ablation": "39998*grid-blocks:1", "image_size": [200, 200]},
        {"ablation": "blocks:1", "image_size": [4096, 4096]},
        {"ablation": "columns:1/4096", "image_size": [10**9, 4096]},
        {"ablation": "+".join(["rows:1"] * 3000), "image_size": [3000, 9]},
        {"ablation": "blocks:1", "image_size": [40, 40], "threats": [[1, 1, 1600]]},
        {"image_size": [10**17, 10**17]},
        {"threats": [[1, 1, 27]] * 4000},
    ],
    ids=lambda claim: str(claim)[:60],
)
def test_claims_that_are_much_work(members, claim, tmp_path):
    """Masks, choices of cells, unions of patches: bounded before they are drawn."""
    given = dict(members)["claim"]
    (tmp_path / "work.npz").write_bytes(packed(replaced(members, "claim", {**given, **claim})))
    status, _, err = verified(tmp_path / "work.npz")
    assert status in (1, 2)
    assert err.count("\n") == status - 1, err


def test_footprints_that_are_much_work(tmp_path, monkeypatch, capsys):
    """Rows of runs and places are counted before anything is made of them; places times ablations before they are."""
    one = np.array([[0, 0, 0, 1]], "<i4")
    for name in ("runs", "places"):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            listed(**{"runs": one, "places": one, name: np.zeros((2**20 + 1, 4), "<i4")}, size=(9, 9))
    cross = honest("shapes", tmp_path / "proof.npz")
    assert proof.main(["verify", str(tmp_path / "proof.npz")]) == 0
    number = len(dict(cross)["places"])
    monkeypatch.setattr(masks, "MOST_LISTED", number // 3)
    assert proof.main(["verify", str(tmp_path / "proof.npz")]) == 2
    assert re.search(r"shape \d .* at most \d+ are drawn", capsys.readouterr().err)


def test_many_threats_are_bounded_together(members, tmp_path, monkeypatch, capsys):
    """Each is little work, all of them would take long; with a smaller limit, so that the test does not."""
    monkeypatch.setattr(proof, "_MOST_WORK", 2**29)
    b, side = 1, 64
    cast = np.zeros((b, side, 2), bool)
    cast[:, :, 0] = True
    claim = {**dict(members)["claim"], "ablation": "columns:1", "image_size": [side, side]}
    claim["threats"] = [[h, w, 1] for h in range(1, 60) for w in range(1, 60)]
    arrays = {"prediction": np.zeros(b, "<i8"), "certified": np.ones(b, bool), "margin": np.zeros(b, "<i8")}
    shape = np.array(cast.shape, "<i8")
    made = {"cast": np.packbits(cast), "close": np.packbits(0 * cast), "shape": shape, **arrays, "claim": claim}
    path = written(tmp_path, packed(list(made.items())))
    assert proof.main(["verify", str(path)]) == 2
    assert "hours" in capsys.readouterr().err


def test_damaged_bytes_never_make_another_proof(members, tmp_path, capsys):
    """A bit flipped anywhere, cut off anywhere, something in front or behind: no proof, or the same one."""
    plain, chance = packed(members), random.Random(0)
    damaged = [plain[:at] + bytes([plain[at] ^ 1 << chance.randrange(8)]) + plain[at + 1 :] for at in range(len(plain))]
    damaged = chance.sample(damaged, 400)
    damaged += [plain[:at] for at in chance.sample(range(len(plain)), 60)]
    damaged += [plain + b"\0", b"\0" + plain, plain + plain, plain[: len(plain) // 2] + plain]
    proof.main(["verify", str(written(tmp_path, plain))])
    said = capsys.readouterr().out
    same = 0
    for content in damaged:
        status = proof.main(["verify", str(written(tmp_path, content))])
        out, err = capsys.readouterr()
        if status == 0:
            with np.load(io.BytesIO(content)) as file:
                assert {name: file[name].tolist() for name in file.files} == arrays(plain)
            assert out == said
            same += 1
        else:
            assert (status, out, err.count("\n")) == (2, "", 1), (out, err)
    assert same < 150


def written(folder: Path, content: bytes) -> Path:
    (folder / "damaged.npz").write_bytes(content)
    return folder / "damaged.npz"


def arrays(content: bytes) -> dict[str, list]:
    with np.load(io.BytesIO(content)) as file:
        return {name: file[name].tolist() for name in file.files}


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_only_what_numpy_writes_is_decompressed(members, compression, tmp_path):
    (tmp_path / "odd.npz").write_bytes(packed(members, compression))
    assert "compressed in another way" in refused(tmp_path / "odd.npz")


def test_what_is_no_file(tmp_path):
    """A folder, a device without an end, an empty file, none at all, a name with line breaks."""
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "odd\nname").write_bytes(b"")
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "empty.npz", tmp_path / "none.npz", tmp_path / "odd\nname"):
        refused(path)

"""Files that are not what was written: loading one opens no socket, starts no program and runs no pickle."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from evaluate.audit.reproducer import load as load_finding
from evaluate.runs.counterexample import load_counterexample
from evaluate.runs.records import read_records
from robustpatch.ablations.kinds import Columns
from robustpatch.checkpoints import load_checkpoint, model_from, save_checkpoint
from robustpatch.data.images import load_images
from robustpatch.errors import InvalidInput
from robustpatch.proof.verifier import verify
from robustpatch.threats.rectangle import PatchThreat
from tests import toys
from tests.evaluate import small_runs as runs
from tests.evaluate.test_hostile_replays import NOTE, finding, saved
from tests.forbidding import forbidden
from tests.robustpatch.test_hostile_checkpoints import SMALL

Loader = Callable[[Path], object]
# What may be put where a text was: what a loader would have to open, fetch or run.
PLANTED = [
    b"http://127.0.0.1:9/",
    b"/etc/passwd",
    b"os:system",
    b"timm:hf-hub:a/b",
    b"cos\nsystem\n",
    b"%!PS-Adobe",
    b"\x80\x04",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[bytes, Loader]]:
    """A good file of each kind, and what loads it."""
    folder = tmp_path_factory.mktemp("good")
    save_checkpoint(folder / "checkpoint", toys.seeded(lambda: model_from(SMALL)), SMALL)
    saved(folder / "replay")
    finding(folder / "finding", NOTE)
    model = toys.smoothed(toys.strip(Columns(2)), Columns(2))
    model.certify(toys.images(2), PatchThreat(1, 1)).save(folder / "proof")
    runs.run(folder / "run")
    (shard, *_) = sorted((folder / "run" / "records").iterdir())
    Image.effect_noise((9, 8), 80).save(folder / "picture", "PNG", compress_level=0)
    save_file({"weight": torch.zeros(2)}, folder / "foreign")

    def records(path: Path) -> object:
        (folder / "run" / "records" / shard.name).write_bytes(path.read_bytes())
        return read_records(folder / "run")

    def pictures(path: Path) -> object:
        place = path.parent / f"photos-{path.stem}" / "a"
        place.mkdir(parents=True)
        (place / "0.png").write_bytes(path.read_bytes())
        return load_images("folder", place.parent).batch([0])

    loaders: dict[str, Loader] = {
        "checkpoint": load_checkpoint,
        "replay": load_counterexample,
        "finding": load_finding,
        "proof": verify,
        "picture": pictures,
        "foreign": load_checkpoint,
    }
    found = {name: ((folder / name).read_bytes(), load) for name, load in loaders.items()}
    return {**found, "records": (shard.read_bytes(), records)}


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut off, doubled, bytes changed, or a text of PLANTED put over some of it, mostly near the front."""
    data, kind = bytearray(content), rng.randrange(5)
    at = rng.randrange(min(len(data), rng.choice([64, 600, len(data)])))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        return bytes(data[:at] + data[at // 2 :])
    for _ in range(1 if kind == 2 else 8):
        place = rng.randrange(at + 1)
        some = rng.choice(PLANTED) if kind == 4 else bytes([rng.randrange(256)])
        data[place : place + len(some)] = some
    return bytes(data)


def attempts_of(files: dict[str, tuple[bytes, Loader]], folder: Path, number: int) -> tuple[list[str], dict[str, int]]:
    """The loaders' attempts on so many mutated files, and how many of each kind were loaded all the same."""
    rng, found, loaded = random.Random(5), list[str](), dict.fromkeys(files, 0)
    for i in range(number):
        name = sorted(files)[i % len(files)]
        content, load = files[name]
        path = folder / f"{i:04d}-{name}"
        path.write_bytes(mutated(content, rng))
        with forbidden("passwd", writes=name not in ("records", "picture")) as attempts:
            try:
                load(path)
                loaded[name] += 1
            except InvalidInput:
                pass
            except Exception:
                if name != "proof":  # the verifier's command makes one line of any error
                    raise
        found += attempts
    return found, loaded


def test_a_few_mutated_files(files: Any, tmp_path: Path) -> None:
    """No attempt, and an `InvalidInput` or a value; the good ones load."""
    for name, (content, load) in files.items():
        if name != "foreign":
            (tmp_path / name).write_bytes(content)
            load(tmp_path / name)
    assert attempts_of(files, tmp_path, 42)[0] == []


@pytest.mark.slow
def test_seven_hundred_mutated_files(files: Any, tmp_path: Path) -> None:
    """A hundred of each kind."""
    found, loaded = attempts_of(files, tmp_path, 700)
    assert found == []
    assert loaded["foreign"] == 0


def test_the_hook_sees_what_it_is_for(tmp_path: Path) -> None:
    """A socket, a program, a pickle, a file written, a secret read: each an attempt, and stopped."""
    import pickle
    import socket
    import subprocess

    from tests.forbidding import Attempted

    (tmp_path / "secret").write_text("x")
    for attempt in (
        lambda: socket.socket(),
        lambda: subprocess.run(["true"], check=False),
        lambda: pickle.loads(pickle.dumps(random.Random)),
        lambda: (tmp_path / "new").write_text("x"),
        lambda: (tmp_path / "secret").read_text(),
    ):
        with forbidden("secret") as attempts, pytest.raises(Attempted):
            attempt()
        assert len(attempts) == 1
    assert not (tmp_path / "new").exists()

"""Claim a folder for one run: `run.json` says what decides its results, and no other run writes there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluate.model.identity import NOT_RESUMED, package_code
from evaluate.runs.sealed_table import run_named_by
from robustpatch.cli.text import one_line
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_json
from robustpatch.storage.store import Store


@contextmanager
def claimed(store: Store, configuration: dict[str, Any]) -> Iterator[str]:
    """Hold `store` while the block runs, as this run's (`claim`), together with other processes of the same run. A run
    that is refused within the block before it has written anything gives its claim up.
    """
    with store.held(alone=False):
        run = claim(store, configuration)
        try:
            yield run
        except InvalidInput:
            if not store.others and not store.names("records", ".parquet", depth=None):
                store.remove("run.json")
            raise


def claim(output: str | Path | Store, configuration: dict[str, Any]) -> str:
    """Make `output` this run's, or find that it is already; returns `run_of` it. Raises `InvalidInput` where it holds
    another, and of two runs that come at once for one of them.

    Where run.json is missing, what lies there says whose it is: results of this run are kept, those of others refused.
    """
    configuration = json.loads(json.dumps(configuration))
    store, run = Store.of(output), _name_of(configuration)
    for name in [] if store.exists("run.json") else store.names("records", ".parquet", depth=None):
        if run_named_by(store, name) not in (run, None):
            raise InvalidInput(
                f"output {store} has no run.json, but {name} of another run; name another output, or move that away"
            )
    if not store.create("run.json", json.dumps(configuration, indent=1).encode()):
        try:
            stored = read_json(store.read("run.json"))
        except ValueError:  # no JSON, or no text at all
            stored = None
        if not isinstance(stored, dict):
            raise InvalidInput(
                f"output {store} holds a run.json that cannot be read; delete that file and repeat the command, which "
                "keeps what is of this run, or name another output"
            )
        for what in (configuration.get(NOT_RESUMED), stored.get(NOT_RESUMED)):
            if what:
                raise InvalidInput(
                    f"output {store} holds records of a model or an attack, and none can be told to be of the one at "
                    f"hand: {one_line(what, 200)}; name a new output, or put the model and all that it holds into files"
                )
        if stored != configuration:
            raise InvalidInput(
                f"output {store} holds another run (other {', '.join(_differing(stored, configuration)) or 'keys'}); "
                "name another output, or repeat that run's options, model and code to resume it"
            )
    return run


def _differing(stored: dict[str, Any], configuration: dict[str, Any]) -> list[str]:
    """The keys under which a run's configuration is another; of files and code, which of them."""
    found = []
    for key, value in configuration.items():
        before = stored.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            inside = sorted(name for name in {**before, **value} if before.get(name) != value.get(name))
            found += [f"{key}: {' '.join(inside)}"] if inside else []
        elif key not in stored:
            found.append(f"{key}, which that run has none of")
        elif before != value:
            found.append(key)
    return found


def run_of(output: str | Path | Store) -> str:
    """Return a hash of run.json, which tells runs apart; "" where there is none that can be read."""
    try:
        configuration = read_json(Store.of(output).read("run.json"))
    except (FileNotFoundError, ValueError):
        return ""
    return _name_of(configuration)


def _name_of(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def of_images(images: ImageSet, total: int) -> dict[str, Any]:
    """Describe for run.json the first `total` images and this package, for every kind of run."""
    return {
        "num_images": total,
        "dataset": images.name,
        "images_sha256": images_sha256(images, total),
        "robustpatch": version("robustpatch"),
        "code": package_code(),
    }


def images_sha256(images: ImageSet, total: int) -> str:
    """Return a hash of all labels, every image as stored, and the first and the last image as read."""
    x, _ = images.batch([0, total - 1])
    digest = hashlib.sha256(images.labels[:total].numpy().tobytes() + x.numpy().tobytes())
    for i in range(total):
        digest.update(hashlib.sha256(images.stored(i)).digest())
    return digest.hexdigest()

"""Whose results a folder holds: `run.json` says what decides them, and no other run writes there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from evaluate.store import Store
from robustpatch.data import ImageSet
from robustpatch.errors import InvalidInput


def claim(output: str | Path | Store, configuration: dict[str, Any]) -> None:
    """Make `output` this run's, or find that it is already. Raises `InvalidInput` where it holds another."""
    configuration = json.loads(json.dumps(configuration))
    store = Store.of(output)
    if store.exists("run.json"):
        try:
            stored = json.loads(store.read("run.json"))
        except ValueError:  # no JSON, or no text at all
            stored = None
        if stored != configuration:
            differing = [k for k in configuration if not isinstance(stored, dict) or stored.get(k) != configuration[k]]
            raise InvalidInput(
                f"output {store} holds another run (other {', '.join(differing) or 'keys'}); name "
                "another output, or repeat that run's options to resume it"
            )
        return
    store.write("run.json", json.dumps(configuration, indent=1).encode())


def images_fingerprint(images: ImageSet, total: int) -> str:
    """What tells data sets of one name apart: all labels, and the first and the last image."""
    x, _ = images.batch([0, total - 1])
    return hashlib.sha256(images.labels[:total].numpy().tobytes() + x.numpy().tobytes()).hexdigest()

"""The records of a run that is whole, with what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.runs.records import Record, read_records
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store


@dataclass(frozen=True)
class CompletedRun:
    """An output of `evaluate.attack_vs_cert`: its run.json and its records by index."""

    output: str
    claim: dict[str, Any]
    records: list[Record]

    @property
    def title(self) -> str:
        """Images and threat."""
        return f"{len(self.records)} {self.claim['dataset']} test images, {self.claim['threat']} patch"

    @property
    def model(self) -> str:
        """What to call the run's model: its checkpoint, or an object of the user's own, and the defense around it."""
        if "checkpoint" in self.claim:
            name = Path(self.claim["checkpoint"]).stem
        else:
            name = str(self.claim.get("model") or self.claim["model_sha256"][:8])
        return f"{name} ({self.claim['defense']})" if self.claim.get("defense") else name


def read_run(output: str | Path) -> CompletedRun:
    """The run in that folder. Raises `InvalidInput` where there is none, or where images are missing."""
    store = Store(output)
    try:
        claim = read_object(store.read("run.json"))
        total = int(claim["num_images"])
        missing = {"dataset", "threat", "images_sha256", "model_sha256"} - claim.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"run {output} holds no run.json ({error!r}); name an --output of evaluate.attack_vs_cert"
        ) from error
    if missing:
        raise InvalidInput(f"run {output} is of another kind; name an --output of evaluate.attack_vs_cert")
    records = read_records(store)
    if len(records) != total or [record.index for record in records] != list(range(total)):
        raise InvalidInput(f"run {output} has {len(records)} of {total} images; repeat its command first")
    return CompletedRun(str(output), claim, records)

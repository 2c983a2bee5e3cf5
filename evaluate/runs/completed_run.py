"""Runs that are complete: every image that was asked for has one record, under every attack and threat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attacks.base import PatchAttack
from evaluate.runs.records import Record, read_records
from robustpatch.cli.text import some_of
from robustpatch.errors import InvalidInput
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat


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
        """The name of the run's model: its checkpoint, or an object of the user's own, and the defense around it."""
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
            f"run {output} holds no run.json ({error!r}); name an --output of robustpatch attack-vs-cert"
        ) from error
    if missing:
        raise InvalidInput(f"run {output} is of another kind; name an --output of robustpatch attack-vs-cert")
    records = read_records(store)
    if len(records) != total or [record.index for record in records] != list(range(total)):
        raise InvalidInput(f"run {output} has {len(records)} of {total} images; repeat its command first")
    return CompletedRun(str(output), claim, records)


class IncompleteRun(RuntimeError):
    """Records are missing, twice there, or of something that nobody asked for: an internal error, never a verdict."""


def check_complete(records: Sequence[Record], total: int, attacks: Sequence[PatchAttack], threat: Threat) -> None:
    """Raise `IncompleteRun` unless the records are of the images 0, …, `total` - 1, each once, and each image has one
    of every attack under every threat, unpruned where it is certified; none where it needs none (see `evaluate`).
    """
    found = Counter(record.index for record in records)
    missing = [i for i in range(total) if not found[i]]
    twice = sorted(i for i, times in found.items() if times > 1)
    foreign = sorted(i for i in found if not 0 <= i < total)
    for what, images in (("no record of", missing), ("two records of", twice), ("a record of", foreign)):
        if images:
            raise IncompleteRun(
                f"there is {what} image{'s' * (len(images) > 1)} {some_of(images)}, of {total} asked for; the workers "
                "did not do what they were given, or shards were changed meanwhile: repeat the command"
            )
    wanted = Counter((attack.name, str(one)) for attack in attacks for one in threat.threats)
    for record in records:
        needed = wanted if record.prediction >= 0 and (record.certified or record.correct) else Counter()
        done = Counter((attack.attack, attack.threat) for attack in record.attacks)
        if done != needed:
            differing = [f"{name} under {one}" for name, one in sorted({*done} | {*needed})]
            raise IncompleteRun(
                f"the record of image {record.index} has {sum(done.values())} of {sum(needed.values())} attacks "
                f"({', '.join(differing)}); repeat the command with another output"
            )
        if any(attack.unpruned != record.certified for attack in record.attacks):
            raise IncompleteRun(
                f"the record of image {record.index} says of an attack that it was "
                f"{'pruned' if record.certified else 'not pruned'}; repeat the command with another output"
            )

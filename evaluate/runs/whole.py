"""That a run's records are those that were asked for, before anything is said of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attacks.base import PatchAttack
from evaluate.runs.records import Record
from robustpatch.threats.base import Threat


class IncompleteRun(RuntimeError):
    """Records are missing, twice there, or of something that nobody asked for: an internal error, never a verdict."""


def check_whole(records: Sequence[Record], total: int, attacks: Sequence[PatchAttack], threat: Threat) -> None:
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
                f"there is {what} image{'s' * (len(images) > 1)} {_some(images)}, of {total} asked for; the workers "
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


def _some(numbers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")

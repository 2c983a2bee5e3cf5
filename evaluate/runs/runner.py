"""images -> records: in batches fixed by index, each written when whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.base import PatchAttack
from attacks.ensemble import is_control
from attacks.occlusion import CONTROLS
from attacks.undefended import Undefended
from evaluate.model.float32 import off_float32
from evaluate.model.gradients import left_out
from evaluate.model.identity import NOT_RESUMED, identity_of, package_code, packages
from evaluate.model.patched_answers import answers, patched_images
from evaluate.model.recheck import Recheck
from evaluate.runs.batch import Settings, evaluate_batch
from evaluate.runs.counterexample import save_counterexample
from evaluate.runs.gallery import SHOWN, exhibits_name, write_exhibits
from evaluate.runs.places import room_of_run
from evaluate.runs.records import Record, read_probe, read_records, read_shard, shard_name, write_shard
from evaluate.runs.run_identity import claim, images_sha256, release
from evaluate.runs.shards import DamagedShard
from evaluate.runs.whole import IncompleteRun, check_whole
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat

Progress = Callable[[int, str], None]  # images finished, what is being done


@dataclass(frozen=True)
class Job:
    """All that a batch needs but its images, and where its results go. `worker`: what the process of a cluster that
    does it says of itself, which is kept with the records.
    """

    model: torch.nn.Module
    threat: Threat
    attacks: tuple[PatchAttack, ...]
    settings: Settings
    store: Store
    configuration: dict[str, Any]
    run: str
    worker: dict[str, Any] | None = None

    def do(self, x: Tensor, y: Tensor, first: int, on_progress: Callable[[str], None] = lambda _: None) -> None:
        """Certify and attack the images `first`, `first` + 1, …, and write what was found: their shard last."""
        x, y = x.to(self.settings.device), y.to(self.settings.device)
        deviation = off_float32(self.model, x)
        batch = evaluate_batch(
            self.model,
            x,
            y,
            first,
            self.threat,
            self.attacks,
            self.settings,
            configuration=self.configuration,
            on_progress=on_progress,
        )
        name = shard_name(first, first + len(y))
        files = {save_counterexample(self.store, self.model, example) for example in batch.counterexamples}
        if write_exhibits(self.store, exhibits_name(name), batch.exhibits):
            files.add(exhibits_name(name))
        asked = answers(self.model, patched_images(x, batch.records, self.threat)[0], len(x))
        write_shard(self.store, name, batch.records, self.run, deviation, asked, files, self.worker)

    def damage(self, batch: range) -> str | None:
        """What is wrong with the shard of these images, or with files that belong to it; "" where there is none, None
        where all is whole.
        """
        try:
            read_shard(self.store, shard_name(batch.start, batch.stop), self.run, whole=True)
        except FileNotFoundError:
            return ""
        except DamagedShard as error:
            return error.reason
        return None


_RESERVED = (  # keys of run.json that not every run has
    "model_files",
    "model_values",
    "attacks_files",
    "attacks_values",
    NOT_RESUMED,
    "left_out",
)

# Does the missing batches, here or elsewhere, and tells how many of their images are finished.
Workers = Callable[[Job, ImageSet, Sequence[range], Progress], None]


def _check_name(attack: PatchAttack) -> None:
    """Refuse what its name would make of it in the records: an attack a control, or controls alone an attack."""
    if attack.name == "predict":
        raise InvalidInput(
            "an attack is named predict, by which records name a prediction that contradicts its certificate; rename it"
        )
    named, controls = attack.name in CONTROLS, [is_control(one) for one in (attack, attack.unpruned(None))]
    if named and not all(controls):
        raise InvalidInput(f"an attack is named {attack.name}, as a control is, which tests no certificate; rename it")
    if any(controls) and not named:
        raise InvalidInput(
            f"{attack.name} holds controls alone, which test no certificate; run them by their own names"
        )


def evaluate(
    model: torch.nn.Module,
    images: ImageSet,
    threat: Threat,
    attacks: Sequence[PatchAttack],
    settings: Settings,
    output: str | Path | Store,
    *,
    configuration: dict[str, Any] | None = None,
    module: str | None = None,
    on_progress: Progress = lambda *_: None,
    on_damaged: Callable[[str, str], None] = lambda *_: None,
    on_note: Callable[[str], None] = lambda _: None,
    workers: Workers | None = None,
) -> list[Record]:
    """Certify and attack every image, and return the records; what `output` already holds is not done again.

    Every image that is certified, for a right or a wrong label, is attacked by `attack.unpruned`: all placements
    open, all ablations scored at every step, so that the verdict does not lean on the geometry it tests. An image that
    is classified correctly but not certified is attacked as the attack likes. The rest need no attack. A model without
    `certify` certifies nothing; any `nn.Module` whose output's largest entry is the prediction will do.

    A killed run started again with the same arguments gives the same records, times apart, on the same kind of device
    and number of threads; so do `workers` (an `evaluate.runs.cluster.Cluster`) and several processes with one `output`.
    A shard that is not what this run wrote, or to which an exhibit or a counterexample belongs that is not, is told to
    `on_damaged`, by name and reason, and its images are done again. Another model, by its weights, its files or what it
    holds (`evaluate.model.identity.identity_of`), is another run; one whose code is in no file is run and not resumed.
    Before a run goes on, a few recorded images are predicted and certified once more, and a few patched ones predicted:
    what differs from the record is refused. (What none of these shows is not seen: a file that the model reads as it is
    asked, or a private table without a constant's name, that changes
    no answer to these, nine patched images of a batch.) Whoever did the batches, the records returned are of every
    image asked for, once, under every attack and threat: anything else is an `IncompleteRun`. A model that has no
    gradient in the image is attacked by what needs none: `on_note` is told what an ensemble leaves out, and so is
    run.json ("left_out"); an attack that climbs gradients alone is refused with `InvalidInput`. A model that computes
    in less than float32 is held against it on eight images of each batch (`evaluate.model.float32`). Counterexamples to
    certificates are saved in `output`/counterexamples. `configuration` is written to `output`/run.json, beside what
    tells runs apart: a key of that in it is refused with `InvalidInput`, as is an output that holds another run or
    cannot be written; where nothing of this run was written when it was refused, it claims no output. `module`:
    the name of the user's module that made the model, whose files count as the model's.
    """
    store = Store.of(output)
    threat.check_fits(*images.image_shape[1:])
    for attack in attacks:
        for one in threat.threats:
            attack.check(one)
        if isinstance(attack, Undefended):
            attack.check_model(model)
        _check_name(attack)
    if len({attack.name for attack in attacks}) < len(attacks):
        raise InvalidInput(f"attacks are {', '.join(attack.name for attack in attacks)}: one name twice; drop one")
    total = min(settings.num_images, len(images))
    own = {
        **{name: value for name, value in vars(settings).items() if (name, value) != ("top_k", 1)},
        "num_images": total,
        "threat": str(threat),
        "dataset": images.name,
        "class_names": list(images.class_names),
        "images_sha256": images_sha256(images, total),
        "robustpatch": version("robustpatch"),
        "code": package_code(),
        "packages": packages(model, *attacks),
        **identity_of(model, attacks, module=module),
        "attacks": [repr(attack) for attack in attacks],
    }
    own = _with_note(own, configuration or {})
    notes = left_out(model, images, attacks)
    if notes:
        own["left_out"] = notes
    for note in notes:
        on_note(note)
    with store.held(alone=False):
        job = Job(model, threat, tuple(attacks), settings, store, own, claim(store, own))
        try:
            return _all(job, images, total, on_progress, on_damaged, workers or _here)
        except InvalidInput:
            release(store)
            raise


def _all(
    job: Job, images: ImageSet, total: int, on_progress: Progress, on_damaged: Callable[[str, str], None], work: Workers
) -> list[Record]:
    """Do what is missing or damaged; the records of all images."""
    store, settings = job.store, job.settings
    batches = [range(a, min(a + settings.batch_size, total)) for a in range(0, total, settings.batch_size)]
    missing = _missing(job, batches, on_damaged)
    finished = total - sum(map(len, missing))
    whole = [batch for batch in batches if batch not in missing]
    again, names = (
        Recheck(job.model, images, job.threat, settings),
        {one: shard_name(one.start, one.stop) for one in whole},
    )
    again.check(((one, read_shard(store, name, job.run)) for one, name in names.items()), str(store))
    again.check_probes(
        ((one, read_shard(store, name, job.run), read_probe(store, name)) for one, name in names.items()), str(store)
    )
    if missing:
        store.check_writable(_room(job, images, sum(map(len, missing))))
        work(job, images, missing, lambda more, what: on_progress(finished + more, what))
    left = _missing(job, batches, lambda *_: None)
    if left:
        names = ", ".join(shard_name(batch.start, batch.stop) for batch in left[:8])
        raise IncompleteRun(
            f"the workers returned, but {len(left)} of {len(batches)} batches are not done ({names}); what is done is "
            "kept: repeat the command"
        )
    records = read_records(store)
    check_whole(records, total, job.attacks, job.threat)
    on_progress(total, "done")
    return records


def _room(job: Job, images: ImageSet, number: int) -> int:
    """Bytes that so many images still need."""
    settings = job.settings
    shown = len(SHOWN) * (2 * settings.gallery + -(-number // settings.batch_size)) if settings.gallery else 0
    return room_of_run(number, len(job.attacks) * len(job.threat.threats), images.image_shape, shown)


def _with_note(own: dict[str, Any], note: dict[str, Any]) -> dict[str, Any]:
    """Both in one; a note that hid what tells runs apart would let one run go on with the records of another."""
    taken = [key for key in note if key in {*own, *_RESERVED}]
    if taken:
        raise InvalidInput(
            f"configuration has the key {', '.join(map(str, taken))}, by which run.json tells runs apart; rename it"
        )
    return {**own, **note}


def _missing(job: Job, batches: Sequence[range], on_damaged: Callable[[str, str], None]) -> list[range]:
    """The batches to be done. Raises `InvalidInput` for a shard that no batch of this run has."""
    known = {shard_name(batch.start, batch.stop) for batch in batches}
    foreign = [name for name in job.store.names("records", ".parquet") if name not in known]
    if foreign:
        raise InvalidInput(
            f"output {job.store} has {', '.join(foreign)}, which is not of this run; remove it or name another output"
        )
    missing = []
    for batch in batches:
        damage = job.damage(batch)
        if damage is not None:
            missing.append(batch)
        if damage:
            on_damaged(shard_name(batch.start, batch.stop), damage)
    return missing


def _here(job: Job, images: ImageSet, missing: Sequence[range], on_progress: Progress) -> None:
    finished = 0
    for batch in missing:
        on_progress(finished, "certifying")
        if job.damage(batch) is not None:  # else another process did it meanwhile
            job.do(*images.batch(batch), batch.start, lambda what, at=finished: on_progress(at, what))
        finished += len(batch)

"""images -> records: in batches fixed by index, each written when whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from attacks.base import PatchAttack
from attacks.ensemble import is_control
from attacks.occlusion import CONTROLS
from attacks.registry import parse_attacks
from attacks.undefended import Undefended
from evaluate.model.float32 import off_float32
from evaluate.model.gradients import left_out
from evaluate.model.identity import NOT_RESUMED, identity_of, packages
from evaluate.model.patched_answers import answers, patched_images
from evaluate.model.recheck import Recheck
from evaluate.results.evaluation import Evaluation
from evaluate.runs.batch import Settings, evaluate_batch
from evaluate.runs.completed_run import IncompleteRun, check_complete
from evaluate.runs.counterexample import save_counterexample
from evaluate.runs.gallery import SHOWN, exhibits_name, write_exhibits
from evaluate.runs.output import room_of_run
from evaluate.runs.records import open_shard, read_records, read_shard, shard_name, write_shard
from evaluate.runs.run_identity import claimed, of_images
from evaluate.runs.sealed_table import damage_of
from robustpatch.data.image_set import ImageSet
from robustpatch.data.own_images import Images, as_image_set
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import parse_threat, pixels_sha256
from robustpatch.threats.within_masks import bound

Progress = Callable[[int, str], None]  # images finished, what is being done


@dataclass(frozen=True)
class Job:
    """All that a batch needs but its images, and where its results go. `files`: names of the images, by index, where
    they have some. `worker`: what the process of a cluster that does it says of itself, kept with the records.
    """

    model: torch.nn.Module
    threat: Threat
    attacks: tuple[PatchAttack, ...]
    settings: Settings
    store: Store
    configuration: dict[str, Any]
    run: str
    files: tuple[str, ...] = ()
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
        notes = {"float32_deviation": deviation, "probe": asked, "worker": self.worker}
        named = [replace(one, file=self.files[one.index]) for one in batch.records] if self.files else batch.records
        write_shard(self.store, name, named, self.run, files, **notes)

    def damage(self, batch: range) -> str | None:
        """The damage of the shard of these images and of the files that belong to it; see `damage_of`."""
        return damage_of(lambda: read_shard(self.store, shard_name(batch.start, batch.stop), self.run, whole=True))


_RESERVED = (  # keys of run.json that not every run has
    "model_files",
    "model_values",
    "attacks_files",
    "attacks_values",
    NOT_RESUMED,
    "left_out",
)

_UNSAID = (("top_k", 1), ("growing", "square"))  # settings of every run before there was a choice

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
    images: Images,
    threat: Threat | str,
    attacks: Sequence[PatchAttack] | str,
    settings: Settings | None = None,
    output: str | Path | Store | None = None,
    *,
    configuration: dict[str, Any] | None = None,
    module: str | None = None,
    on_progress: Progress = lambda *_: None,
    on_damaged: Callable[[str, str], None] = lambda *_: None,
    on_note: Callable[[str], None] = lambda _: None,
    workers: Workers | None = None,
) -> Evaluation:
    """Certify and attack every image, and return the records with their summary; what `output` holds is not done again.

    `images` are anything that `robustpatch.data.as_image_set` takes; `threat` and `attacks` values, or the texts of
    `parse_threat` and `parse_attacks`. Without `settings` all images are evaluated; without an `output` no file is
    kept.

    Every certified image, of a right or a wrong label, is attacked by `attack.unpruned`: all placements open, all
    ablations scored at every step, so that the verdict does not lean on the geometry it tests. An image that is
    classified correctly but not certified is attacked as the attack likes; the others need no attack. A model without
    `certify` certifies nothing; any `nn.Module` whose output's largest entry is the prediction will do. A model without
    a gradient in the image is attacked by attacks that need none: `on_note` and run.json ("left_out") name what an
    ensemble leaves out. A model that computes in less than float32 is compared with it on eight images of each batch
    (`evaluate.model.float32`).

    A killed run that is started again with the same arguments gives the same records, times apart, on the same kind of
    device and number of threads; so do `workers` (an `evaluate.runs.cluster.Cluster`) and several processes with one
    `output`. A shard, or a file that belongs to one, that is not as it was written is told to `on_damaged`, by name and
    reason, and its images are done again. A model with other weights, files or values is another run
    (`evaluate.model.identity.identity_of`; `module` names the user's module that made it, whose files count); one whose
    code is in no file is not resumed. Before a run goes on, a few recorded images are predicted and certified once
    more, and a few patched ones predicted: what differs from the record is refused. (A file that the model reads as it
    is asked, or a private table without a constant's name, that changes none of these answers is not seen.)

    Counterexamples to certificates are saved in `output`/counterexamples; `configuration` is written to
    `output`/run.json beside what tells runs apart. Raises `InvalidInput` for a key in it that does so too, for an
    output that holds another run or cannot be written, and for an attack that needs gradients where there are none; a
    run that is refused before it wrote anything claims no output. Raises `IncompleteRun` unless the records are of
    every image asked for, once, under every attack and threat.
    """
    images = as_image_set(images)
    settings = Settings(len(images)) if settings is None else settings
    kept = None if output is None else Store.of(output)
    total = min(settings.num_images, len(images))
    threat = parse_threat(threat, images.image_shape[1:]) if isinstance(threat, str) else threat
    threat = bound(threat, images, total)
    attacks = parse_attacks(attacks) if isinstance(attacks, str) else attacks
    threat.check_fits(*images.image_shape[1:])
    for attack in attacks:
        for one in threat.threats:
            attack.check(one)
        if isinstance(attack, Undefended):
            attack.check_model(model)
        _check_name(attack)
    if len({attack.name for attack in attacks}) < len(attacks):
        raise InvalidInput(f"attacks are {', '.join(attack.name for attack in attacks)}: one name twice; drop one")
    own = {
        **{name: value for name, value in vars(settings).items() if (name, value) not in _UNSAID},
        **of_images(images, total),
        "threat": str(threat),
        **({"threat_sha256": digest} if (digest := pixels_sha256(threat)) else {}),
        "class_names": list(images.class_names),
        "packages": packages(model, *attacks),
        **identity_of(model, attacks, module=module),
        "attacks": [repr(attack) for attack in attacks],
    }
    taken = [key for key in configuration or {} if key in {*own, *_RESERVED}]
    if taken:  # one run would go on with the records of another
        raise InvalidInput(
            f"configuration has the key {', '.join(map(str, taken))}, by which run.json tells runs apart; rename it"
        )
    own |= configuration or {}
    notes = left_out(model, images, attacks)
    if notes:
        own["left_out"] = notes
    for note in notes:
        on_note(note)
    with TemporaryDirectory() if kept is None else nullcontext(kept) as place:
        store = Store.of(place)
        with claimed(store, own) as run:
            job = Job(model, threat, tuple(attacks), settings, store, own, run, images.file_names(total))
            _finish(job, images, total, on_progress, on_damaged, workers or _here)
            records = read_records(store)
    check_complete(records, total, attacks, threat)
    on_progress(total, "done")
    return Evaluation(records, f"{total} {images.name} {images.split} images, {threat} patch", settings.top_k)


def _finish(
    job: Job, images: ImageSet, total: int, on_progress: Progress, on_damaged: Callable[[str, str], None], work: Workers
) -> None:
    """Do what is missing or damaged."""
    store, settings = job.store, job.settings
    batches = [range(a, min(a + settings.batch_size, total)) for a in range(0, total, settings.batch_size)]
    missing = _missing(job, batches, on_damaged)
    names = {batch: shard_name(batch.start, batch.stop) for batch in batches if batch not in missing}
    again = Recheck(job.model, images, job.threat, settings)
    again.check(((batch, read_shard(store, name, job.run)) for batch, name in names.items()), str(store))
    opened = ((batch, name, open_shard(store, name, job.run).notes.get("probe")) for batch, name in names.items())
    again.check_probes(((one, read_shard(store, name, job.run), asked) for one, name, asked in opened), str(store))
    if missing:
        number = sum(map(len, missing))
        shown = len(SHOWN) * (2 * settings.gallery + -(-number // settings.batch_size)) if settings.gallery else 0
        tried = len(job.attacks) * len(job.threat.threats)
        store.check_writable(room_of_run(number, tried, images.image_shape, shown))
        work(job, images, missing, lambda more, what: on_progress(total - number + more, what))
    left = _missing(job, batches, lambda *_: None)
    if left:
        some = ", ".join(shard_name(batch.start, batch.stop) for batch in left[:8])
        raise IncompleteRun(
            f"the workers returned, but {len(left)} of {len(batches)} batches are not done ({some}); what is done is "
            "kept: repeat the command"
        )


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

"""One row of a leaderboard: accuracy and certificates on all images, attacks on some, and what each costs."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from attacks import parse_attacks
from attacks.base import PatchAttack
from attacks.undefended import Undefended
from evaluate.leaderboard.config import Entry
from evaluate.model.identity import identity_of
from evaluate.model.load import Subject, subject_of
from evaluate.results.metrics import Share, Summary, summarise
from evaluate.runs.batch import Settings
from evaluate.runs.runner import evaluate
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import CertifiedClassifier
from robustpatch.classifiers.isolation import predict
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.precision import check_device
from robustpatch.storage.bounded_json import read_object
from robustpatch.storage.store import Store
from robustpatch.storage.toml import as_toml
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.within_masks import bound

GALLERY = 4  # images of each outcome that the report of a row shows
_REPEATS = 3
_SECONDS = 10.0  # after so long no further repetition is begun


@dataclass(frozen=True)
class Speed:
    """Images per second of `predict` and of `certify` (None without one): medians of a few repetitions over `images`
    images, `batch` at a time, on `machine` with so many `threads`.
    """

    predict: float
    certify: float | None
    images: int
    batch: int
    machine: str
    threads: int


@dataclass(frozen=True)
class Row:
    """The results of one entry. `whole`: all images, certified and not attacked; `attacked`: the first of them under
    attack, None where none was to be. `train_seconds`: what the checkpoint notes of its training, None where nothing.
    """

    entry: Entry
    whole: Summary
    attacked: Summary | None
    speed: Speed
    train_seconds: float | None
    parameters: int

    @property
    def certified(self) -> Share | None:
        """Certified recovery: predicted right, and proved; None of a defense that proves nothing of the kind."""
        return None if self.alerts else self.whole.certified_exact

    @property
    def detected(self) -> Share | None:
        """Certified detection: predicted right, and proved to stay or to end in an alert; None without alerts."""
        return self.whole.certified_exact if self.alerts else None

    @property
    def alerts(self) -> bool:
        """True where the defense answers attacks by alerts."""
        return self.whole.false_alerts is not None

    @property
    def task(self) -> str:
        """The kind of its certificates: "recovery", "detection", or "none"."""
        return "detection" if self.alerts else "none" if self.certified is None else "recovery"

    @property
    def records(self) -> str:
        """The folder, within the output, of the run that its report is of: that under attack, or that of all images."""
        return f"{self.entry.folder}/{'all' if self.attacked is None else 'attacked'}"

    @property
    def verdict(self) -> str:
        """The verdict on the attacked images; "broken" too where `predict` contradicts a certificate of any other."""
        if self.whole.verdict == "broken":
            return "broken"
        return "not attacked" if self.attacked is None else self.attacked.verdict

    @property
    def broken(self) -> bool:
        """True where an attack, or `predict`, changed a certified prediction."""
        return self.verdict == "broken"


@dataclass(frozen=True)
class Planned:
    """An entry with all that it names found and fitting: nothing of it is refused any more."""

    entry: Entry
    subject: Subject
    threat: Threat
    attacks: tuple[PatchAttack, ...]
    settings: Settings


def plan(entry: Entry, images: ImageSet) -> Planned:
    """Load the entry's model and read its threat and attacks. Raises `InvalidInput`, which names the entry."""
    options = entry.options
    try:
        device = check_device(options.device)
        count = options.num_images or len(images)
        for name, value in (("num_images", count), ("attacked_images", entry.attacked_images)):
            if value > len(images):
                raise InvalidInput(f"{name} is {value}, but {images.name} has {len(images)} test images")
        threat = bound(parse_threat(options.patch, images.image_shape[1:]), images, max(count, entry.attacked_images))
        attacks = parse_attacks(options.attacks, steps=options.steps, budget=options.budget)
        for attack in attacks:
            for one in threat.threats:
                attack.check(one)
        settings = Settings(
            count, options.batch_size, options.certified_budget or None, options.seed, device, gallery=0
        )
        subject = subject_of(options, images, device)
        for attack in attacks:
            if isinstance(attack, Undefended):
                attack.check_model(subject.model)
        _certify_one(subject.model, images, threat, device)
        return Planned(entry, subject, threat, tuple(attacks), settings)
    except InvalidInput as error:
        raise InvalidInput(f"row {entry.called}: {error}") from error


def _certify_one(model: torch.nn.Module, images: ImageSet, threat: Threat, device: str) -> None:
    """Let a defense that cannot certify this threat refuse it now, and not once the rows before it are done."""
    classifier = as_classifier(model)
    if isinstance(classifier, CertifiedClassifier):
        x, _ = images.batch([0])
        classifier.certify(x.to(device), threat)


def measure(
    planned: Planned,
    images: ImageSet,
    output: str | Path | Store,
    on_progress: Callable[[int, str], None] = lambda *_: None,
) -> Row:
    """Certify all images, attack the first, and take the times; what `output` already holds is not done again.

    `on_progress(finished, what)` counts images, those certified and those attacked.
    """
    entry, model, settings = planned.entry, planned.subject.model, planned.settings
    note = {**planned.subject.note, "dtype": entry.options.dtype, "budget": entry.options.budget}
    store = Store.of(output).inside(entry.folder)

    def records(name: str, count: int, attacks: tuple[PatchAttack, ...], done: int) -> Summary:
        some = replace(settings, num_images=count, gallery=GALLERY if attacks else 0)
        own = store.inside(name)
        found = evaluate(
            model,
            images,
            planned.threat,
            attacks,
            some,
            own,
            configuration=note,
            module=planned.subject.module,
            on_progress=lambda finished, what: on_progress(done + finished, f"{entry.called}: {what}"),
        )
        asked = replace(entry.options, num_images=count, attacks=entry.options.attacks if attacks else "none")
        own.write("run.toml", as_toml({**replace(asked, gallery=some.gallery).given(), "output": str(own)}).encode())
        return summarise(found)

    whole = records("all", settings.num_images, (), 0)
    attacked = None
    if entry.attacked_images and planned.attacks:
        attacked = records("attacked", entry.attacked_images, planned.attacks, settings.num_images)
    on_progress(settings.num_images + entry.attacked_images, f"{entry.called}: timing")
    x, _ = images.batch(range(min(entry.timed_images, len(images))))
    identity = identity_of(model, module=planned.subject.module)
    speed = _kept_speed(store, model, identity, x.to(settings.device), planned.threat, settings.batch_size)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Row(entry, whole, attacked, speed, planned.subject.train_seconds, parameters)


def _kept_speed(
    store: Store, model: torch.nn.Module, identity: dict[str, Any], x: Tensor, threat: Threat, batch: int
) -> Speed:
    """The times taken before of this model on this machine, or new ones."""
    machine = torch.cuda.get_device_name(x.device) if x.is_cuda else platform.processor() or platform.machine()
    where = {"images": len(x), "batch": min(batch, len(x)), "machine": machine, "threads": torch.get_num_threads()}
    code = {name: value for name, value in identity.items() if name != "model_sha256"}
    key = {**where, "model": identity["model_sha256"], **code, "threat": str(threat)}
    classifier = as_classifier(model)
    certify = classifier.certify if isinstance(classifier, CertifiedClassifier) else None
    if store.exists("speed.json"):
        with suppress(ValueError, KeyError, TypeError):  # damaged: the times are taken again
            kept = read_object(store.read("speed.json"))
            if kept["of"] == key:
                return Speed(float(kept["predict"]), None if certify is None else float(kept["certify"]), **where)
    predicted = _rate(lambda some: predict(classifier, some), x, batch)
    certified = None if certify is None else _rate(lambda some: certify(some, threat), x, batch)
    store.write("speed.json", json.dumps({"of": key, "predict": predicted, "certify": certified}, indent=1).encode())
    return Speed(predicted, certified, **where)


@torch.no_grad()
def _rate(work: Callable[[Tensor], object], x: Tensor, batch: int) -> float:
    """Images per second."""
    work(x[: min(batch, len(x))])  # what is done once, for the first images, is not counted
    taken: list[float] = []
    while not taken or (len(taken) < _REPEATS and sum(taken) < _SECONDS):
        started = time.perf_counter()
        for some in x.split(batch):
            work(some)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        taken.append(time.perf_counter() - started)
    return len(x) / median(taken)

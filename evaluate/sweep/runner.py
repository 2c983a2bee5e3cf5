"""checkpoints and images -> rows: each image scored once by each checkpoint, certified under every rule and patch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.model.float32 import off_float32
from evaluate.results.table import schema, values
from evaluate.runs.output import room_of_sweep
from evaluate.runs.run_identity import claimed, of_images
from evaluate.runs.runner import Progress
from evaluate.runs.sealed_table import damage_of, read_table, write_table
from evaluate.sweep.columns import RuledBatch, certified_columns, columns
from evaluate.sweep.records import SweepRun, read_sweep, sweep_shard
from robustpatch.certificates.each_image import check_same_places
from robustpatch.certificates.top_k import check_k
from robustpatch.checkpoints import Checkpoint
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat
from robustpatch.threats.parse import pixels_sha256
from robustpatch.voting.rules import Voting


@dataclass(frozen=True)
class SweepSettings:
    """The settings that decide the rows besides checkpoints and images: `num_images` are taken from index 0 on.

    For each k of `top_k` it is certified, too, that the label stays among the k most voted.
    """

    votings: tuple[Voting, ...]
    patches: tuple[Threat, ...]
    num_images: int
    batch_size: int = 500
    device: str = "cpu"
    top_k: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("votings", "patches", "top_k"):
            given = [str(one) for one in getattr(self, name)]
            if not given and name != "top_k":
                raise InvalidInput(f"{name} is empty; name at least one")
            if len(set(given)) < len(given):
                raise InvalidInput(f"{name} is {', '.join(given)}: one of them twice; drop one")


@torch.no_grad()
def certify_scores(
    model: SmoothedClassifier,
    scores: Float[Tensor, "B N K"],
    image_size: tuple[int, int],
    voting: Voting,
    patches: Sequence[Threat],
    *,
    labels: Int[Tensor, " B"] | None = None,
    top_k: Sequence[int] = (),
) -> dict[str, Int[Tensor, " B"]]:
    """Certify images already scored as `certify` and `largest_certified` would with `voting`, and their `labels` where
    `top_k` asks for it as `certify_top_k`; by column (`evaluate.sweep.columns`).

    `scores` are `model.certifiable_scores(x)`. The guard is the model's, whatever `voting` says. Raises
    `InvalidInput` for a rule that makes other scores of the logits than the model's.
    """
    _check_link(model, voting)
    if top_k and labels is None:
        raise InvalidInput(f"labels is None, but top_k asks whether they are among the {top_k} most voted; give both")
    return values(certified_columns(patches, top_k), RuledBatch(model, scores, image_size, voting, labels))


def _check_link(model: SmoothedClassifier, voting: Voting) -> None:
    if voting.link != model.voting.link:
        raise InvalidInput(
            f"voting is {voting}, but the model is scored for {model.voting}, which makes other scores of its logits; "
            "certify it by itself, with robustpatch attack-vs-cert --attacks none"
        )


def sweep(
    checkpoints: Mapping[str, Checkpoint],
    images: ImageSet,
    settings: SweepSettings,
    output: str | Path | Store,
    *,
    configuration: dict[str, Any] | None = None,
    on_progress: Progress = lambda *_: None,
) -> SweepRun:
    """Score every image once with each checkpoint, by name, and certify it under all rules; return the rows.

    What `output` already holds is not done again: a killed run started again with the same arguments gives the same
    rows. The tests of `certify` are made of every checkpoint, and each is on the device only in its turn.
    A shard is sealed by a checksum and its run: one that is damaged or of another run is made again, and named.
    `configuration` goes into `output`/run.json beside what decides the rows; an output that holds another run or cannot
    be written is refused with `InvalidInput`.
    """
    store, total = Store.of(output), min(settings.num_images, len(images))
    for k in settings.top_k:
        check_k(k, len(images.class_names))
    for patch in settings.patches:
        patch.check_fits(*images.image_shape[1:])
        check_same_places(patch, "a sweep")
    for checkpoint in checkpoints.values():
        for voting in settings.votings:
            _check_link(checkpoint.smoothed, voting)
    own = {
        **of_images(images, total),
        "checkpoints": [_described(name, checkpoint, settings.device) for name, checkpoint in checkpoints.items()],
        "votings": [str(voting) for voting in settings.votings],
        "patches": [str(patch) for patch in settings.patches],
        **({"patches_sha256": hashes} if any(hashes := list(map(pixels_sha256, settings.patches))) else {}),
        "batch_size": settings.batch_size,
        "device": settings.device,
        "split": images.split,
        "image_size": list(images.image_shape[1:]),
        "num_classes": len(images.class_names),
        **({"top_k": list(settings.top_k)} if settings.top_k else {}),
        **(configuration or {}),
    }
    whole, writable = schema(columns(settings.patches, settings.top_k)), False
    with claimed(store, own) as run:
        for number, (name, checkpoint) in enumerate(checkpoints.items()):
            model = checkpoint.smoothed
            for first in range(0, total, settings.batch_size):
                index = range(first, min(first + settings.batch_size, total))
                shard = sweep_shard(name, first, index.stop)
                damage = damage_of(lambda shard=shard: read_table(store, shard, whole, run))
                if damage is None:
                    continue
                if not writable:
                    store.check_writable(room_of_sweep(len(checkpoints) * total, len(settings.votings), len(whole)))
                    writable = True
                again = f" (once more: its shard is damaged, {damage})" if damage else ""
                on_progress(number * total + first, name + again)
                table, notes = _batch(name, model.to(settings.device), images, index, settings)
                write_table(store, shard, table, run, notes=notes)
            model.to("cpu")  # leaves the device to the next
        on_progress(len(checkpoints) * total, "done")
        return read_sweep(store)


def _described(name: str, checkpoint: Checkpoint, device: str) -> dict[str, Any]:
    model = checkpoint.smoothed.to(device)  # whose precision decides the guard
    guard = model.guard
    model.to("cpu")
    return {
        "name": name,
        "sha256": checkpoint.sha256,
        "ablation": str(model.ablation),
        "ablations": model.ablation.count(*checkpoint.config["image_shape"][1:]),
        "encoding": model.encoding.name,
        "voting": str(model.voting),
        "guard": guard,
    }


@torch.no_grad()
def _batch(
    name: str, model: SmoothedClassifier, images: ImageSet, index: range, settings: SweepSettings
) -> tuple[pa.Table, dict[str, Any]]:
    """The rows of one batch, rule by rule; and the seconds spent on scoring and on certificates, and the distance of
    scores from float32's (`evaluate.model.float32`).
    """
    x, y = images.batch(index)
    started = time.monotonic()
    deviation = off_float32(model, x.to(settings.device))
    scores = model.certifiable_scores(x.to(settings.device))
    scored = time.monotonic()
    listed, tables = columns(settings.patches, settings.top_k), []
    for voting in settings.votings:
        found = values(listed, RuledBatch(model, scores, (x.shape[2], x.shape[3]), voting, y, name, index))
        held = {field: one.cpu().numpy() if isinstance(one, Tensor) else one for field, one in found.items()}
        tables.append(pa.table(held, schema=schema(listed)))
    seconds = {"scoring": scored - started, "certifying": time.monotonic() - scored}
    return pa.concat_tables(tables), {"seconds": seconds, "float32_deviation": deviation}

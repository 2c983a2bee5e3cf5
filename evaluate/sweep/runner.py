"""checkpoints and images -> rows: each image scored once by each checkpoint, certified under every rule and patch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.model.float32 import off_float32
from evaluate.model.identity import package_code
from evaluate.runs.places import room_of_sweep
from evaluate.runs.run_identity import claim, images_sha256, release
from evaluate.runs.runner import Progress
from evaluate.sweep.records import (
    SweepRun,
    damage,
    margin_column,
    read_sweep,
    schema,
    sweep_shard,
    top_column,
    write_sweep_shard,
)
from robustpatch.certificates.exact import Method, certify_votes, largest_certified
from robustpatch.certificates.lead import ranks
from robustpatch.certificates.top_k import certify_top_k, check_k
from robustpatch.checkpoints import Checkpoint
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.storage.store import Store
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import Voting, first_argmax

METHODS: tuple[Method, ...] = ("exact", "margin")


@dataclass(frozen=True)
class SweepSettings:
    """What decides the rows besides checkpoints and images: `num_images` are taken from index 0 on.

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
    """What `certify` and `largest_certified` would say with `voting`, of images already scored, by column; and of their
    `labels`, where `top_k` asks for it, `certify_top_k`.

    `scores` are `model.certifiable_scores(x)`. The guard is the model's, whatever `voting` says. Margins are in whole
    votes, rounded down. Raises `InvalidInput` for a rule that makes other scores of the logits than the model's.
    """
    _check_link(model, voting)
    guard = model.guard_on(scores.device)
    votes = voting.votes(scores, guard)
    columns = {
        "prediction": first_argmax(votes.counts),
        "close_votes": votes.close.flatten(1).sum(dim=1),
        "largest_certified": largest_certified(votes, model.ablation, image_size),
        "largest_certified_margin": largest_certified(votes, model.ablation, image_size, "margin"),
    }
    if top_k and labels is None:
        raise InvalidInput(f"labels is None, but top_k asks whether they are among the {top_k} most voted; give both")
    if top_k and labels is not None:
        columns["rank"] = ranks(votes.counts, labels.to(scores.device))
    capacity = voting.capacity(model.num_classes)
    for patch in patches:
        for method in METHODS:
            found = certify_votes(votes, model.ablation, patch, image_size, method=method, guard=guard)
            assert found.margin is not None  # of votes there always is one
            columns[margin_column(method, patch)] = torch.div(found.margin, found.unit, rounding_mode="floor")
        if labels is not None:
            for k in top_k:
                top = certify_top_k(votes, labels, k, model.ablation, patch, image_size, capacity=capacity, guard=guard)
                columns[top_column(k, patch)] = torch.div(top.margin, top.unit, rounding_mode="floor")
    return columns


def _check_link(model: SmoothedClassifier, voting: Voting) -> None:
    if voting.link != model.voting.link:
        raise InvalidInput(
            f"voting is {voting}, but the model is scored for {model.voting}, which makes other scores of its logits; "
            "certify it by itself, with evaluate.attack_vs_cert --attacks none"
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
    for checkpoint in checkpoints.values():
        for voting in settings.votings:
            _check_link(checkpoint.smoothed, voting)
    own = {
        "checkpoints": [_described(name, checkpoint, settings.device) for name, checkpoint in checkpoints.items()],
        "votings": [str(voting) for voting in settings.votings],
        "patches": [str(patch) for patch in settings.patches],
        "num_images": total,
        "batch_size": settings.batch_size,
        "device": settings.device,
        "dataset": images.name,
        "split": images.split,
        "image_size": list(images.image_shape[1:]),
        "num_classes": len(images.class_names),
        "images_sha256": images_sha256(images, total),
        "robustpatch": version("robustpatch"),
        "code": package_code(),
        **({"top_k": list(settings.top_k)} if settings.top_k else {}),
        **(configuration or {}),
    }
    with store.held(alone=False):
        run = claim(store, own)
        try:
            _sweep(checkpoints, images, settings, store, run, total, on_progress)
        except InvalidInput:
            release(store)
            raise
        on_progress(len(checkpoints) * total, "done")
        return read_sweep(store)


def _sweep(
    checkpoints: Mapping[str, Checkpoint],
    images: ImageSet,
    settings: SweepSettings,
    store: Store,
    run: str,
    total: int,
    on_progress: Progress,
) -> None:
    """Do what is missing or damaged."""
    whole, writable = schema(settings.patches, settings.top_k), False
    for number, (name, checkpoint) in enumerate(checkpoints.items()):
        model = checkpoint.smoothed
        for first in range(0, total, settings.batch_size):
            stop = min(first + settings.batch_size, total)
            shard = sweep_shard(name, first, stop)
            found = damage(store, shard, run, whole)
            if found is None:
                continue
            if not writable:
                store.check_writable(room_of_sweep(len(checkpoints) * total, len(settings.votings), len(whole)))
                writable = True
            again = f" (once more: its shard is damaged, {found})" if found else ""
            on_progress(number * total + first, name + again)
            model.to(settings.device)
            rows, seconds, deviation = _batch(model, images, range(first, stop), settings)
            constant = {"checkpoint": [name] * (stop - first), "ablation": [str(model.ablation)] * (stop - first)}
            write_sweep_shard(store, shard, run, [{**constant, **row} for row in rows], whole, seconds, deviation)
        model.to("cpu")  # leaves the device to the next


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


def _batch(
    model: SmoothedClassifier, images: ImageSet, index: range, settings: SweepSettings
) -> tuple[list[dict[str, Any]], dict[str, float], float | None]:
    """The columns of one batch, a dictionary for each rule, the seconds spent on scoring and on certificates, and the
    distance of scores from float32's (`evaluate.model.float32`).
    """
    x, y = images.batch(index)
    started = time.monotonic()
    deviation = off_float32(model, x.to(settings.device))
    scores = model.certifiable_scores(x.to(settings.device))
    scored = time.monotonic()
    rows = []
    for voting in settings.votings:
        found = certify_scores(
            model, scores, (x.shape[2], x.shape[3]), voting, settings.patches, labels=y, top_k=settings.top_k
        )
        columns = {name: tensor.cpu().numpy() for name, tensor in found.items()}
        rows.append({"voting": [str(voting)] * len(index), "index": list(index), "label": y.numpy(), **columns})
    return rows, {"scoring": scored - started, "certifying": time.monotonic() - scored}, deviation

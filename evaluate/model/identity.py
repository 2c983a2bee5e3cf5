"""One answer to "is this the same model?": its weights, the files of its code, and what its objects hold.

What none of these shows, a few recorded images asked about once more may (`evaluate.model.recheck`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from evaluate.model.source_files import files_of, is_own
from evaluate.model.state_hash import NoFile, hash_state
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.clone import FOLDERS, OURS
from robustpatch.defenses import Defended

NOT_RESUMED = "not_resumed"
_ALWAYS = ("numpy", "torch")


def identity_of(model: torch.nn.Module, attacks: Iterable[object] = (), *, module: str | None = None) -> dict[str, Any]:
    """Return what run.json keeps of a model and of attacks, so that no run goes on with the records of others.

    "model_sha256": weights, buffers and how a defense votes (`weights_sha256`); "model_files": the SHA-256 of each file
    of the user's own that code of the model is in or imports, `module`, which made it, among them; "model_values": a
    hash of what its objects hold (`hash_state`); "attacks_files" and "attacks_values" where there are attacks. Of code
    that is in no file, and of objects that cannot be copied, nobody can say in another process whether they are the
    same: "not_resumed" says what was found, and is unlike that of any other run.
    """
    identity: dict[str, Any] = {"model_sha256": weights_sha256(model)}
    attacks = list(attacks)
    held = [("model", [model], {module} if module else set()), *([("attacks", attacks, set())] if attacks else [])]
    for name, objects, more in held:
        try:
            values, modules = hash_state(objects, caches=name == "attacks")
        except NoFile as reason:
            return {**identity, NOT_RESUMED: f"{reason} ({uuid4().hex})"}
        identity |= {f"{name}_files": files_of(modules | more), f"{name}_values": values}
    return identity


def weights_sha256(model: torch.nn.Module) -> str:
    """Return a hash of a model's kind, its state dict, and how a smoothed one ablates, samples and votes."""
    parts: list[object] = [type(model).__qualname__]
    if isinstance(model, Defended):
        parts += [str(model.defense), weights_sha256(model.network)]
    if isinstance(model, RandomizedClassifier):
        parts += [repr(model.sampling), model.views]
    if isinstance(model, SmoothedClassifier | RandomizedClassifier):
        parts += [type(model.base).__qualname__, str(model.ablation), str(model.voting), model.guard]
        parts += [model.encoding.name, *vars(model.encoding).values()]
    digest = sha256(repr(parts).encode())
    for name, held in sorted(model.state_dict().items()):
        if isinstance(held, Tensor):
            digest.update(repr((name, str(held.dtype), tuple(held.shape))).encode())
            digest.update(held.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            continue
        try:  # what a module's get_extra_state returns
            digest.update(repr((name, hash_state([held], caches=True)[0])).encode())
        except NoFile:  # like nothing else
            digest.update(uuid4().bytes)
    return digest.hexdigest()


@cache
def package_code() -> str:
    """Return a hash of every line of this package: under one version, in a working copy, it may change."""
    digest = sha256()
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def packages(*held: object) -> dict[str, str]:
    """Return the versions of PyTorch, NumPy and the installed packages that classes of the objects come from: of the
    submodules of a model, too, and of all that these derive from.
    """
    parts = [part for one in held for part in (one.modules() if isinstance(one, torch.nn.Module) else (one,))]
    names = {kind.__module__ for part in parts for kind in type(part).__mro__}
    known = {*sys.stdlib_module_names, *OURS, *_ALWAYS}
    tops = {name.partition(".")[0] for name in names if not is_own(name)} - known
    where = packages_distributions() if tops else {}
    return {name: _version(name) for name in sorted({*_ALWAYS, *(one for top in tops for one in where.get(top, ()))})}


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]  # +cpu and +cu128 are of one version
    except PackageNotFoundError:
        return "unknown"

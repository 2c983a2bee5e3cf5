"""images -> records: in batches fixed by index, each written when whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from attacks.base import PatchAttack
from evaluate.batch import Settings, evaluate_batch
from evaluate.claim import claim, images_fingerprint, model_fingerprint
from evaluate.counterexample import save_counterexample
from evaluate.exhibits import exhibits_name, write_exhibits
from evaluate.records import Record, read_records, shard_name, write_shard
from evaluate.store import Store
from robustpatch.data import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.threat import Threat

Progress = Callable[[int, str], None]  # images finished, what is being done


def evaluate(
    model: torch.nn.Module,
    images: ImageSet,
    threat: Threat,
    attacks: Sequence[PatchAttack],
    settings: Settings,
    output: str | Path | Store,
    *,
    configuration: dict[str, Any] | None = None,
    on_progress: Progress = lambda *_: None,
) -> list[Record]:
    """Certify and attack every image, and return the records; what `output` already holds is not done again.

    Every image that is certified, for a right or a wrong label, is attacked by `attack.unpruned`: all placements
    open, all ablations scored at every step, so that the verdict does not lean on the geometry it tests. An image that
    is classified correctly but not certified is attacked as the attack likes. The rest need no attack. A model without
    `certify` certifies nothing; any `nn.Module` whose output's largest entry is the prediction will do.

    A killed run started again with the same arguments gives the same records, times apart, on the same kind of device
    and number of threads. Counterexamples to certificates are saved in `output`/counterexamples. `configuration` is
    written to `output`/run.json; an output that holds another run is refused with `InvalidInput`.
    """
    store = Store.of(output)
    threat.check_fits(*images.image_shape[1:])
    for attack in attacks:
        for one in threat.threats:
            attack.check(one)
    if len({attack.name for attack in attacks}) < len(attacks):
        raise InvalidInput(f"attacks are {', '.join(attack.name for attack in attacks)}: one name twice; drop one")
    total = min(settings.num_images, len(images))
    own = {
        **vars(settings),
        "num_images": total,
        "threat": str(threat),
        "dataset": images.name,
        "class_names": list(images.class_names),
        "images_sha256": images_fingerprint(images, total),
        "robustpatch": version("robustpatch"),
        "model_sha256": model_fingerprint(model),
        "attacks": [repr(attack) for attack in attacks],
        **(configuration or {}),
    }
    claim(store, own)
    done = {record.index for record in read_records(store)}
    for first in range(0, total, settings.batch_size):
        stop = min(first + settings.batch_size, total)
        if done.issuperset(range(first, stop)):
            continue
        on_progress(first, "certifying")
        x, y = (tensor.to(settings.device) for tensor in images.batch(range(first, stop)))
        batch = evaluate_batch(
            model,
            x,
            y,
            first,
            threat,
            attacks,
            settings,
            configuration=own,
            on_progress=lambda what, at=first: on_progress(at, what),
        )
        for example in batch.counterexamples:
            save_counterexample(store, model, example)
        write_exhibits(store, exhibits_name(shard_name(first, stop)), batch.exhibits)
        write_shard(store, shard_name(first, stop), batch.records)
    on_progress(total, "done")
    return read_records(store)

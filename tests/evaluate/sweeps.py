"""Checkpoints of random networks on tiny images, and sweeps written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evaluate.sweep import SweepRun
from evaluate.sweep.columns import margin_column
from robustpatch.checkpoints import Checkpoint, load_checkpoint, model_from, save_checkpoint
from robustpatch.data.images import ImageSet
from tests.evaluate.planted import image_set

SIZE, CLASSES = (6, 8), 3
STRIP = {"name": "strip", "widths": [4, 4], "hidden": 0}
SMALL = {"name": "small-cnn", "widths": [4], "hidden": 8}


def make(path: Path, ablation="columns:2", network=STRIP, channels=1, seed=0, guard: float | None = None) -> Checkpoint:
    """Untrained weights, spread so far that classes differ from image to image, that and a bias that certifies some."""
    config = {
        "network": network,
        "ablation": ablation,
        "voting": "threshold:0.3",
        "guard": guard,
        "encoding": "complement",
        "image_shape": [channels, *SIZE],
        "class_names": [str(k) for k in range(CLASSES)],
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = model_from(config).eval()
        x = scene(16)._bytes.expand(-1, channels, -1, -1) / 255
        last = [module for module in model.base.modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)][-1]
        scores = model.logits(x)
        last.weight *= 2 / scores.std()
        last.bias -= model.logits(x).mean(dim=(0, 1))
        last.bias[1] += 0.8
    save_checkpoint(path, model, config)
    return load_checkpoint(path)


def scene(number: int = 7) -> ImageSet:
    """Grey noise with black and white halves, labels in turn."""
    x = torch.rand(number, 1, *SIZE, generator=torch.Generator().manual_seed(3))
    x[0::3, ..., :4], x[1::3, :, 3:] = 0, 1
    return image_set(x, torch.arange(number) % CLASSES, CLASSES)


def written(
    rows: dict[tuple[str, str], list[tuple[bool, int, int]]],
    ablations: dict[str, str],
    *,
    split: str = "validation",
    side: int = 2,
    image_size: tuple[int, int] = (4, 5),
) -> SweepRun:
    """A sweep by hand: for each (checkpoint, voting) the images' (correct, largest exact, largest by the margin)."""
    columns = {}
    for key, images in rows.items():
        correct, exact, margin = (np.array(part) for part in zip(*images, strict=True))
        columns[key] = {
            "index": np.arange(len(images)),
            "label": np.full(len(images), 3),
            "prediction": np.where(correct, 3, 1),
            "largest_certified": exact,
            "largest_certified_margin": margin,
            "close_votes": np.arange(len(images)),
            margin_column("exact", f"{side}x{side}"): exact - side,
            margin_column("margin", f"{side}x{side}"): margin - side,
        }
    checkpoints = [
        {"name": name, "sha256": f"sha of {name}", "ablation": ablation, "ablations": 5, "guard": 1e-4}
        | {"voting": "threshold:0.4"}
        for name, ablation in ablations.items()
    ]
    configuration = {
        "checkpoints": checkpoints,
        "votings": list(dict.fromkeys(voting for _, voting in rows)),
        "patches": [f"{side}x{side}"],
        "num_images": len(next(iter(rows.values()))),
        "dataset": "mnist",
        "split": split,
        "image_size": list(image_size),
        "num_classes": 4,
    }
    return SweepRun(configuration, columns, {})

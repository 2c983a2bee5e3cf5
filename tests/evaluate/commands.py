"""Every command that writes, on images of a few pixels, and a place that holds what they read."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tests.evaluate.sweeps import CLASSES, SIZE, SMALL, make
from tests.killed import Command, call

LYING = """
from dataclasses import replace
import torch
from robustpatch import Columns, PatchThreat, SmoothedClassifier

class Base(torch.nn.Module):
    def forward(self, encoded):
        kept, complement = encoded.chunk(2, dim=1)
        light = 9.0 * ((kept - complement) / 2).flatten(1).sum(dim=1) / encoded.shape[2]
        return torch.stack([-light, light], dim=1)

class Lying(SmoothedClassifier):
    def certify(self, x, threat, method="exact"):
        return replace(super().certify(x, PatchThreat(1, 1), method), threat=threat)

defended = Lying(Base(), Columns(2), num_classes=2)
"""
BRIGHT = """
from types import SimpleNamespace
import numpy as np

class Bright:
    num_classes = 2
    def lead(self, x):
        x = np.asarray(x)
        return 2 * (x.mean(axis=(1, 2)) > 0.5).sum(axis=1) - x.shape[3]
    def predict(self, x):
        return (self.lead(x) > 3).astype(int)
    def certify(self, x, threat):
        lead = self.lead(x)
        return SimpleNamespace(prediction=(lead > 0).astype(int), certified=lead != 0)
"""
RECIPE = """# größer als θ
[defaults]
bfloat16 = false
batch_size = 12
patch = "2x2"
network = {name = "strip", widths = [2, 2], hidden = 4}

[[run]]
name = "two"
stages = [{epochs = 1}, {epochs = 1, lr = 0.01}]

[[run]]
name = "one"
epochs = 1
"""
BOARD = """
title = "Zwei davon, θ ≥ 0.3"
dataset = "folder"
num_images = 4
attacked_images = 2
timed_images = 2
attacks = "pgd:1"
steps = 1
certified_budget = 100
batch_size = 2
patch = "2x2"
[[defense]]
name = "narrow"
checkpoint = "{place}/runs/narrow/checkpoint.safetensors"
[[defense]]
name = "square"
checkpoint = "{place}/runs/square/checkpoint.safetensors"
"""
GATE = "[[floor]]\nleast = 0\n"


def draw_images(root: Path, **numbers: int) -> None:
    """Folders of so many images of each class, by split: noise, and a white band where the class says."""
    generator = np.random.default_rng(0)
    for split, number in numbers.items():
        for k in range(CLASSES):
            folder = root / split / str(k)
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
                pixels[:, k * 2 : k * 2 + 4] = 255
                Image.fromarray(pixels).save(folder / f"{i}.png")


def furnish(place: Path) -> None:
    """Images, checkpoints for them, a model and a certifier that lie, a recipe, a board."""
    draw_images(place / "images", test=2, train=12)
    for name, level in (("dark", 120), ("light", 135)):
        folder = place / "photos" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((12, 14, 3), level + number, np.uint8)).save(folder / f"{number}.png")
    make(place / "runs" / "narrow" / "checkpoint.safetensors", channels=3)
    make(place / "runs" / "square" / "checkpoint.safetensors", "blocks:3", SMALL, channels=3, seed=4)
    files = {"lying.py": LYING, "bright.py": BRIGHT, "recipe.toml": RECIPE, "board.toml": BOARD, "gate.toml": GATE}
    for name, text in files.items():
        (place / name).write_text(text.replace("{place}", str(place)), "utf-8")


def commands(place: Path) -> dict[str, Command]:
    """All of them by name."""
    images = ("--dataset", "folder", "--data-root", str(place / "images"))
    narrow, square = (str(place / "runs" / name / "checkpoint.safetensors") for name in ("narrow", "square"))
    run, other = (str(place / name / "out") for name in ("run", "other"))
    out, quick = ("--output", "out"), ("--attacks", "pgd:1", "--steps", "2", "--num-images", "4", "--batch-size", "2")
    lying = ("--model", f"{place}/lying.py:defended", "--dataset", "folder", "--data-root", str(place / "photos"))
    sweep = ("--theta", "0.3", "--patch", "2x2", "--batch-size", "3")
    train = ("--network", "small-cnn", "--batch-size", "12", "--epochs", "2", "--patch", "2x2", "--no-bfloat16")
    audit = ("--shape", "1x4x8", "--patch", "1x1", "--images", "2", "--budget", "4")
    evaluator = ("--checkpoint", narrow, *images, *quick, "--patch", "2x2", "--plain", *out)
    broken = (*lying, "--image-size", "12x14", *quick, "--patch", "6x6", "--plain", *out)
    module = "evaluate.attack_vs_cert"
    return {
        "evaluator": Command(module, evaluator),
        "evaluator, broken": Command(module, broken, status=1),
        **({"evaluator on Ray": Command(module, (*evaluator, "--ray"), forked=True)} if find_spec("ray") else {}),
        "sweep": Command("evaluate.sweep.__main__", (narrow, square, *images, *sweep, *out)),
        "leaderboard": Command(
            "evaluate.leaderboard.__main__", (f"{place}/board.toml", "--data-root", f"{place}/images", *out)
        ),
        "audit": Command("evaluate.audit.__main__", (f"{place}/bright.py:Bright", *audit, *out), status=1),
        "report": Command("evaluate.report.__main__", (run, *out)),
        "compare": Command("evaluate.compare", (run, other, *out)),
        "gate": Command("evaluate.gate.__main__", (f"{place}/gate.toml", run, *out)),
        "bundle": Command("evaluate.bundle.__main__", (run, "--output", "out/case.zip")),
        "boards": Command("evaluate.boards", (str(place / "board" / "out"), "--output", "out/boards.html")),
        "curve": Command("evaluate.curve", (run, "--output", "out/curve.png")),
        "learning": Command(
            "evaluate.learning", (f"{place}/trained/out/checkpoint.safetensors", "--output", "out/learning.png")
        ),
        "train": Command("robustpatch.train", (*images, *train, *out), again=("--resume",)),
        "recipe": Command("robustpatch.recipe", (f"{place}/recipe.toml", *images, *out)),
    }


def read_before(place: Path) -> dict[str, Callable[[], None]]:
    """Makers of the files that some of the commands read, by other commands."""
    made = commands(place)

    def run(name: str, folder: str) -> None:
        found = call(made[name], place / folder)
        assert found.status == 0, found.said

    return {
        "report": lambda: run("evaluator", "run"),
        "compare": lambda: (run("evaluator", "run"), run("evaluator", "other")),
        "gate": lambda: run("evaluator", "run"),
        "bundle": lambda: run("evaluator", "run"),
        "boards": lambda: run("leaderboard", "board"),
        "curve": lambda: run("evaluator", "run"),
        "learning": lambda: run("train", "trained"),
    }

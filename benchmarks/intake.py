"""Certificates of one network from every kind of file, held against those of the network in PyTorch.

    python benchmarks/intake.py --data-root DIR --output DIR [--images 200]

Four small networks are trained on 10,000 MNIST images, written to files of every kind, opened as `--model` opens them,
and defended. Printed is, for each kind and defense, how many certificates there are and how many images differ.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from evaluate.model.own import OfArrays
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.data.images import load_images
from robustpatch.defenses import parse_defense
from robustpatch.intake import look_at, overridden
from robustpatch.networks import SmallCNN
from robustpatch.threats import parse_threat

DEFENSES = (
    "patchcleanser:masks=4,patch=5x5",
    "minority-reports:masks=4,patch=5x5,confidence=0.6",
    "lgs:window=3,overlap=2,threshold=0.7",
)
SIZE, PATCH = (28, 28), "5x5"


class InThree(nn.Module):
    """A network of colour images, shown grey ones, normalised as by `--mean 0.5 --std 0.5`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        found = self.network((x.expand(-1, 3, -1, -1) - 0.5) / 0.5)
        return found if isinstance(found, Tensor) else found.logits


def hugging_face() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10)
    return ResNetForImageClassification(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small-cnn": lambda: SmallCNN(image_size=SIZE, num_classes=10, in_channels=1),
    "timm": lambda: InThree(timm.create_model("test_resnet", num_classes=10)),
    "torchvision": lambda: InThree(torchvision.models.shufflenet_v2_x0_5(num_classes=10)),
    "Hugging Face": lambda: InThree(hugging_face()),
}


def train(network: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Under random rectangles of grey, as the defense will hide pixels."""
    chance = torch.Generator().manual_seed(0)
    steps = epochs * len(x) // 64
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    network.train()
    for _ in range(steps):
        index = torch.randint(len(x), (64,), generator=chance)
        some = x[index].clone()
        for top, left in torch.randint(0, 18, (2, 2), generator=chance).tolist():
            some[:, :, top : top + 10, left : left + 10] = 0.5
        loss = nn.functional.cross_entropy(network(some), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def written(trained: dict[str, nn.Module], folder: Path) -> dict[str, tuple[str, nn.Module, str | None]]:
    """kind -> what `--model` is told, the network in PyTorch, the file of weights."""
    small, example = trained["small-cnn"], torch.rand(2, 1, *SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(small, example), str(folder / "net.pt"))
        dynamic = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(small, (example,), dynamic_shapes=dynamic), folder / "net.pt2")
        torch.onnx.export(small, (example,), folder / "net.onnx", dynamic_shapes=dynamic, verbose=False)
    for name in ("timm", "torchvision"):
        save_file(
            {key: value.contiguous() for key, value in inside(trained[name]).state_dict().items()},
            folder / f"{name}.safetensors",
        )
    inside(trained["Hugging Face"]).save_pretrained(folder / "hf")
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder / "hf")
    return {
        "TorchScript": (str(folder / "net.pt"), small, None),
        "torch.export": (str(folder / "net.pt2"), small, None),
        "ONNX": (str(folder / "net.onnx"), small, None),
        "timm:test_resnet": ("timm:test_resnet", trained["timm"], str(folder / "timm.safetensors")),
        "torchvision:shufflenet_v2_x0_5": (
            "torchvision:shufflenet_v2_x0_5",
            trained["torchvision"],
            str(folder / "torchvision.safetensors"),
        ),
        "Hugging Face": (str(folder / "hf"), trained["Hugging Face"], None),
        "NumPy": ("", small, None),
    }


def inside(network: nn.Module) -> Any:
    return network.network


def opened(name: str, weights: str | None, network: nn.Module) -> nn.Module:
    if not name:
        return OfArrays(lambda x: network(torch.from_numpy(x)).numpy().astype(np.float32)).eval()
    source = look_at(name, weights)
    assert source is not None
    if weights is not None:  # trained here, on images of another size than the library's own weights
        given = overridden(source.preprocessing, size=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        object.__setattr__(source, "preprocessing", given)
    say(str(source))
    return source.build(SIZE)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--defenses", nargs="+", default=DEFENSES)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    training, test = load_images("mnist", given.data_root, "train"), load_images("mnist", given.data_root, "test")
    x, y = training.batch(range(10_000))
    trained = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        trained[name] = train(make(), x, y, given.epochs)
    x, y = test.batch(range(given.images))
    threat = parse_threat(PATCH, SIZE)
    say("| kind | defense | clean | certified | predictions that differ | certificates that differ | seconds |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    expected: dict[tuple[int, str], Any] = {}
    for kind, (name, network, weights) in written(trained, given.output).items():
        model = opened(name, weights, network)
        for text in given.defenses:
            started, found = time.monotonic(), []
            for one in (network, model):
                if one is network and (id(network), text) in expected:
                    found.append(expected[id(network), text])
                    continue
                defended = as_classifier(parse_defense(text).wrap(one, num_classes=10).eval())
                prediction, certified = torch.zeros(0).long(), torch.zeros(0).bool()
                for some in x.split(50):
                    certificate: Any = defended.certify(some, threat) if defended.certifies else None  # type: ignore
                    own = defended.predict(some) if certificate is None else certificate.prediction
                    prediction = torch.cat([prediction, own])
                    certified = torch.cat(
                        [certified, torch.zeros_like(own).bool() if certificate is None else certificate.certified]
                    )
                found.append((prediction, certified))
            expected[id(network), text] = found[0]
            (prediction, certified), (theirs, claimed) = found
            proved = f"{100 * float((claimed & (theirs == y)).float().mean()):.1f}" if defended.certifies else "–"
            cells = [kind, f"`{text}`", f"{100 * float((theirs == y).float().mean()):.1f}", proved]
            cells += [
                int((prediction != theirs).sum()),
                int((certified != claimed).sum()),
                f"{time.monotonic() - started:.0f}",
            ]
            say("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()

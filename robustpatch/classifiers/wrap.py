"""One call from a model of torchvision, timm or your own to a smoothed classifier."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.classifiers.smoothed import SmoothedClassifier
from robustpatch.encoding import ComplementChannels, Encoding
from robustpatch.errors import InvalidInput
from robustpatch.networks.library import adapt, create
from robustpatch.networks.vit import TokenDropViT
from robustpatch.voting.rules import Threshold, Voting


def wrap(
    model: str | nn.Module,
    ablation: Ablation,
    *,
    num_classes: int | None = None,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    encoding: Encoding = ComplementChannels(),
    voting: Voting = Threshold(0.3),
    chunk: int | None = None,
    compiled: bool = False,
    **options: Any,
) -> SmoothedClassifier:
    """A smoothed classifier, in evaluation mode, whose base is any image classifier: "torchvision:resnet50",
    "timm:vit_tiny_patch16_224", or a module, which is copied and left as it is.

    The base reads encoded images and still computes, of a wholly kept image, what the model computes of the normalised
    one (`robustpatch.networks.widen`). Vision transformers of torchvision and timm compute no hidden token
    (`TokenDropViT`); all others score the ablations chunk by chunk. It takes training on ablated images, however, to
    recognise much in a band.

    Args:
        ablation: which pixels each view keeps. num_classes: K; None for as many as the model has.
        image_size: (height, width). in_channels: C of the images, 3 or 1.
        mean, std: by which the model's images, in [0, 1], are to be normalised; None for timm's own, for ImageNet's
            with torchvision's models, and for none with others.
        encoding, voting, chunk: as for `SmoothedClassifier`.
        compiled: `torch.compile` what takes most of the time, on the first call.
        options: of the model's constructor, where it is named; `pretrained=True` downloads weights.

    Raises `InvalidInput` where there is no such model, or it does not answer images of this size.
    """
    if isinstance(model, str):
        model = create(model, num_classes=num_classes, image_size=image_size, **options)
    elif options:
        raise InvalidInput(f"options {', '.join(options)} are for a model by name, but model is a module; drop them")
    else:
        model = copy.deepcopy(model)
    height, width = image_size
    base = adapt(
        model, ablation=ablation, encoding=encoding, image_shape=(in_channels, height, width), mean=mean, std=std
    )
    classes = _outputs(base, ablation, encoding.channels(in_channels), image_size)
    if num_classes is not None and num_classes != classes:
        raise InvalidInput(f"num_classes is {num_classes}, but the model has {classes} outputs; give it that many")
    if compiled:
        (base.layers if isinstance(base, TokenDropViT) else base).compile(dynamic=True)
    return SmoothedClassifier(base, ablation, num_classes=classes, voting=voting, encoding=encoding, chunk=chunk).eval()


@torch.no_grad()
def _outputs(base: nn.Module, ablation: Ablation, channels: int, image_size: tuple[int, int]) -> int:
    base.eval()
    tensor = next(base.parameters(), torch.zeros(()))
    if isinstance(base, TokenDropViT):
        x = torch.zeros(1, base.in_channels, *image_size).to(tensor)
        return base.score_all(x, torch.zeros(1, dtype=torch.long, device=tensor.device)).shape[2]
    return base(torch.zeros(1, channels, *image_size).to(tensor)).shape[1]

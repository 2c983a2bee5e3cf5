"""ART's `PyTorchDeRandomizedSmoothing` as a certifier that the audit understands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from evaluate.audit.certifier import Claim
from evaluate.audit.harness import Factory
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.voting.rules import first_argmax

if TYPE_CHECKING:
    from art.estimators.certification.derandomized_smoothing import PyTorchDeRandomizedSmoothing

By = Literal["evaluation", "predict"]


class ARTCertifier:
    """ART's smoothed classifier, square patches only: every vote, prediction and certificate is ART's own.

    `predict` is the argmax of ART's `predict`. `certify` is what the ablator's `certify` says: of the votes that ART's
    `eval_and_certify` counts (`by` "evaluation"), or of what its `predict` returns (`by` "predict"), as its examples
    have it. The size certified is that of the patch's side.

    The audit's images, [B,C,H,W] in [0, 1], are brought to the classifier's `clip_values` and its order of axes; what
    it does with them then, such as `preprocessing=(mean, std)`, is part of what is audited.
    """

    def __init__(self, classifier: PyTorchDeRandomizedSmoothing, by: By = "evaluation") -> None:
        self.classifier = classifier
        self.by: By = by
        self.num_classes = int(classifier.nb_classes)

    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        return first_argmax(self.scores(x))

    def scores(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Returns ART's `predict`: votes (levine2020), or the sum of the model's outputs (salman2021)."""
        return torch.from_numpy(np.asarray(self.classifier.predict(self.array(x)), np.float64)).float()

    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat) -> Claim:
        one = threat.threats[0]
        if len(threat.threats) > 1 or one.count > 1 or one.height != one.width:
            raise InvalidInput(f"patch is {threat}; ART certifies against one square")
        heard: list[Any] = []
        ablator, labels = self.classifier.ablator, np.zeros(len(x), np.int64)
        if self.by == "predict":
            counts = self.classifier.predict(self.array(x))
            heard.append(ablator.certify(counts, size_to_certify=one.height, label=labels))
        else:
            asked = ablator.certify

            def certify(*given: Any, **named: Any) -> Any:
                heard.append(asked(*given, **named))
                return heard[-1]

            ablator.certify = certify  # eval_and_certify returns means only: listen to what it is told
            try:
                one_hot = np.eye(self.num_classes, dtype=np.float32)[labels]
                self.classifier.eval_and_certify(self.array(x), one_hot, one.height, verbose=False)
            finally:
                del ablator.certify
        return Claim(
            torch.cat([torch.as_tensor(told[2]) for told in heard]).long().cpu(),
            torch.cat([torch.as_tensor(told[0]) for told in heard]).bool().cpu(),
        )

    def array(self, x: Float[Tensor, "B C H W"]) -> np.ndarray:
        """The images as the classifier takes them: in its `clip_values`, channels last where it has them there."""
        found = x.detach().cpu().numpy().astype(np.float32)
        if not self.classifier.channels_first:
            found = np.ascontiguousarray(found.transpose(0, 2, 3, 1))
        clip = self.classifier.clip_values
        if clip is None:
            return found
        low, high = (np.asarray(end, dtype=np.float32) for end in clip)
        return found * (high - low) + low

    @property
    def with_base(self) -> Factory | None:
        """The same settings around another base: the audit's factory. None where channels come last."""
        made = self.classifier
        if not made.channels_first:
            return None
        votes = {} if made.threshold is None else {"threshold": made.threshold, "logits": bool(made.logits)}
        clip = {} if made.clip_values is None else {"clip_values": made.clip_values}
        treated = {name: getattr(made, name) for name in ("preprocessing", "preprocessing_defences")}
        size = made.ablation_size[0]
        return art_factory(made.algorithm, made.ablation_type, size, self.by, **votes, **clip, **treated)


def art_factory(
    algorithm: str, ablation_type: str, ablation_size: int, by: By = "evaluation", **options: Any
) -> Factory:
    """Makes ART certifiers of one kind around any base, on the CPU.

    `options` are ART's own, such as `threshold`, `logits`, `clip_values`, `preprocessing` and `preprocessing_defences`;
    they have to fit images of any size.
    """
    options = {"threshold": 0.3, "logits": True, "clip_values": (0.0, 1.0), "preprocessing": (0.0, 1.0), **options}

    def make(base: nn.Module, num_classes: int, image_shape: tuple[int, int, int]) -> ARTCertifier:
        from art.estimators.certification.derandomized_smoothing import PyTorchDeRandomizedSmoothing

        classifier = PyTorchDeRandomizedSmoothing(
            model=base,
            loss=nn.CrossEntropyLoss(),
            input_shape=image_shape,
            nb_classes=num_classes,
            ablation_size=ablation_size,
            algorithm=algorithm,
            ablation_type=ablation_type,
            device_type="cpu",
            verbose=False,
            **options,
        )
        return ARTCertifier(classifier, by)

    return make


levine_column = art_factory("levine2020", "column", 1)
levine_row = art_factory("levine2020", "row", 1)
levine_block = art_factory("levine2020", "block", 3)
levine_probabilities = art_factory("levine2020", "column", 1, logits=False)
salman_column = art_factory("salman2021", "column", 1)
salman_row = art_factory("salman2021", "row", 1)
salman_block = art_factory("salman2021", "block", 3)

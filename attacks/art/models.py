"""Classifiers across the border: ours as ART sees them, ART's as our attacks see them."""

from __future__ import annotations

import random
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attacks.gradient import UNRELATED, not_differentiable
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.lending import lent
from robustpatch.classifiers.smoothed import voting_classifier
from robustpatch.errors import InvalidInput
from robustpatch.voting.rules import first_argmax
from robustpatch.voting.silence import has_score

if TYPE_CHECKING:
    from art.estimators.classification import PyTorchClassifier

_SILENT = -30.0  # the log-odds of a vote that is not cast, of an ablation without a score


class Scores(nn.Module):
    """Logits of the model for ART, without parameters: what ART does to modes and gradients does not reach the model.

    With `inside`, [1,C,H,W], the image x [1,C,H,W] shows outside of it, whatever ART puts there. `evaluations` counts
    the ablations scored, forward and backward.
    """

    def __init__(
        self, classifier: Classifier, x: Float[Tensor, "P C H W"], inside: Bool[Tensor, "P C H W"] | None = None
    ) -> None:
        super().__init__()
        self._classifier = (classifier,)  # in a tuple, so that it is no part of this module
        self._x, self._inside = x, inside
        self._each, _ = classifier.cost(x.shape[2], x.shape[3])
        self.evaluations = 0

    def shown(self, x: Float[Tensor, "P C H W"]) -> Float[Tensor, "P C H W"]:
        """Put the image x outside of `inside`."""
        return x if self._inside is None else torch.where(self._inside, x, self._x)

    def forward(self, x: Tensor) -> Tensor:
        return _Apart.apply(x, self)  # type: ignore[no-any-return]

    def count(self, rows: int) -> None:
        self.evaluations += rows * self._each

    def of(self, x: Float[Tensor, "P C H W"]) -> Float[Tensor, "P K"]:
        (classifier,), x = self._classifier, self.shown(x.to(self._x))
        model = voting_classifier(classifier)
        if model is None or model is not classifier:
            return classifier.outputs(x).float()
        logits = model.logits(lent(x))
        known = has_score(model.voting.scores(logits.detach()))
        margins = model.voting.margins(torch.where(known, logits, 0))
        margins = torch.where(known, margins, _SILENT)
        # The soft vote is their sigmoid, and this the log-odds of its mean.
        odds = nn.functional.logsigmoid(margins).logsumexp(1) - nn.functional.logsigmoid(-margins).logsumexp(1)
        votes = model.voting.votes(model.voting.scores(logits.detach()), model.guard_on(x.device))
        winner = first_argmax(votes.counts)[:, None]
        best = odds.detach()
        short = (best.amax(dim=1, keepdim=True) - best.gather(1, winner) + 1e-3) * (
            first_argmax(best)[:, None] != winner
        )
        return odds + torch.zeros_like(best).scatter(1, winner, short)


class _Apart(torch.autograd.Function):
    """The model's scores with their gradient in the images, and in nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scores: Scores) -> Tensor:
        scores.count(len(x))
        if not ctx.needs_input_grad[0]:
            return scores.of(x.detach()).to(x.device)
        with torch.enable_grad():
            ctx.leaf = x.detach().requires_grad_()
            try:
                ctx.out = scores.of(ctx.leaf).to(x.device)
            except UNRELATED:
                raise
            except Exception:  # as of what computes with numpy: ART may want no gradient
                ctx.out = scores.of(x.detach()).to(x.device)
            ctx.scores = scores
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        ctx.scores.count(len(ctx.leaf))
        try:
            return torch.autograd.grad(ctx.out, ctx.leaf, grad_outputs[0], retain_graph=True)[0], None
        except UNRELATED:
            raise
        except Exception as error:  # foreign code raises what it likes
            raise not_differentiable(error) from error


def estimator_of(scores: Scores, x: Float[Tensor, "P C H W"], classes: int) -> PyTorchClassifier:
    """Make the classifier that ART attacks. It computes on the CPU, the scores wherever the model is."""
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(**estimator_options(scores, x, classes))


def estimator_options(scores: Scores, x: Float[Tensor, "P C H W"], classes: int) -> dict[str, Any]:
    """The arguments of that classifier."""
    shape, loss = tuple(x.shape[1:]), nn.CrossEntropyLoss()
    own = {"model": scores, "loss": loss, "input_shape": shape, "nb_classes": classes}
    return {**own, "clip_values": (0.0, 1.0), "preprocessing": None, "device_type": "cpu"}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global sources of chance on the CPU seeded within, and as they were afterwards."""
    # ART draws from numpy's legacy global state, so that is the one to seed.
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def as_module(classifier: PyTorchClassifier) -> nn.Module:
    """The logits of an ART `PyTorchClassifier`, its preprocessing included, as a module that our attacks run on.

    Values are those of its own prediction, to the bit; gradients pass through preprocessing defences by ART's own
    estimate (`estimate_forward`, or `estimate_gradient` of those written in numpy). It shares the classifier's model,
    and its mode: call `classifier.model.eval()` before. Raises `InvalidInput` for other estimators, other clip values
    than (0, 1), channels last and postprocessing, and, when called, where ART was told other shapes or classes.
    """
    from art.estimators.classification import PyTorchClassifier

    if not isinstance(classifier, PyTorchClassifier):
        raise InvalidInput(f"classifier is a {type(classifier).__name__}; pass an ART PyTorchClassifier")
    clip = classifier.clip_values
    if clip is None or not (np.all(np.asarray(clip[0]) == 0) and np.all(np.asarray(clip[1]) == 1)):
        raise InvalidInput(
            f"clip_values are {None if clip is None else tuple(np.asarray(clip).tolist())}; build the classifier with "
            "clip_values=(0, 1), and scale to what its model expects by preprocessing=(mean, std)"
        )
    if not classifier.channels_first:
        raise InvalidInput("channels_first is False; images are [batch, channels, height, width]: set it to True")
    if classifier.postprocessing_defences:
        raise InvalidInput(
            f"postprocessing_defences are {classifier.postprocessing_defences}; these have no gradient: leave them out"
        )
    return _OfART(classifier)


class _OfARTsKind(ABC):  # noqa: B024  a test of classes, not to be derived from
    """Whatever derives from ART's `PyTorchClassifier`, told without importing ART, which takes seconds."""

    @classmethod
    def __subclasshook__(cls, kind: type) -> bool:
        return any(one.__name__ == "PyTorchClassifier" and one.__module__.startswith("art.") for one in kind.__mro__)


@as_classifier.register(_OfARTsKind)
def _(given: Any) -> Classifier:
    return as_classifier(as_module(given))


class _OfART(nn.Module):
    def __init__(self, classifier: PyTorchClassifier) -> None:
        super().__init__()
        self.classifier, self.model = classifier, classifier.model
        self.training = classifier.model.training

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        if tuple(x.shape[1:]) != tuple(self.classifier.input_shape):
            raise InvalidInput(
                f"images have shape {tuple(x.shape[1:])}, but input_shape of the ART classifier is "
                f"{tuple(self.classifier.input_shape)}; make both agree"
            )
        for step in self.classifier.preprocessing_operations:
            if step.apply_predict:
                x = _Preprocess.apply(x, step)  # type: ignore[assignment]
        out = self.model(lent(x))
        if out.shape != (len(x), self.classifier.nb_classes):
            raise InvalidInput(
                f"the ART classifier's model returned {tuple(out.shape)} for {len(x)} images, but nb_classes is "
                f"{self.classifier.nb_classes}; make both agree"
            )
        return out


class _Preprocess(torch.autograd.Function):
    """One of ART's preprocessing steps, with the gradient that ART gives it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Any) -> Tensor:
        ctx.x, ctx.step = x.detach(), step
        if hasattr(step, "estimate_forward"):
            return step.forward(ctx.x.clone(), None)[0]
        return torch.from_numpy(np.array(step(ctx.x.cpu().numpy().copy())[0])).to(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad,) = grad_outputs
        if not hasattr(ctx.step, "estimate_forward"):
            found = ctx.step.estimate_gradient(ctx.x.cpu().numpy(), grad.cpu().numpy())
            return torch.from_numpy(np.asarray(found)).to(grad), None
        with torch.enable_grad():
            leaf = ctx.x.clone().requires_grad_()
            out = ctx.step.estimate_forward(leaf)
        return torch.autograd.grad(out, leaf, grad)[0], None

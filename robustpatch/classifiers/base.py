"""The interface of every classifier: all that certificates, attacks and the evaluator need of one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.top_k import TopKCertificate
from robustpatch.clone import OURS
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat

_RENAMED = {"evaluations": "cost", "predict_counted": "predict_with_cost"}


class Classifier(nn.Module):
    """Predicts a class for each image [B,C,H,W], in evaluation mode; knows its cost and the judge of attacks on it.

    Foreign classifiers (a plain `nn.Module`, ART's, one of numpy, a function) become one by `as_classifier`, once,
    where they enter; afterwards no code tests the type or the attributes of a classifier.

    Attributes:
        num_classes: K; 0 where a foreign model does not say.
        randomized: whether `predict` depends on chance. Only this declaration counts, not a `referee` or a
            `prediction_error`. With it abstentions under a patch are no changes, `referee()` may judge, and the errors
            below are added to those that the confidence of the certificates allows.
        alerts: whether `predict` may answer -1 for an attack, by this declaration alone. Then a patch that is answered
            so has not succeeded; an alert on a clean image is a wrong answer.
        prediction_error, judge_error: of a randomized one, the chances that `predict` and the referee's answer, where
            they do not abstain, are wrong.
    """

    num_classes: int
    randomized: bool = False
    alerts: bool = False
    certifies: ClassVar[bool] = False  # set by `CertifiedClassifier`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for old, new in _RENAMED.items():
            if old in vars(cls):
                raise TypeError(f"{cls.__name__} defines {old}, which is now called {new}; rename it")
        if not cls.certifies and any("certify" in vars(kind) for kind in cls.__mro__):
            raise TypeError(f"{cls.__name__} defines certify but is no CertifiedClassifier; derive it from that too")

    def overridden(self, home: type, *methods: str) -> list[str]:
        """The methods that are not those of the class `home`: replaced in a subclass, mixed in, or on the object."""
        return [name for name in methods if name in vars(self) or getattr(type(self), name) is not getattr(home, name)]

    def check_overridden(self) -> None:
        """Raise `InvalidInput` for a subclass that overrides what attacks read otherwise."""

    @property
    def given(self) -> nn.Module:
        """The module that the user made: this one, unless it wraps another."""
        return self

    @property
    def prediction_error(self) -> float:
        return 0.0

    @property
    def judge_error(self) -> float:
        return 0.0

    @property
    def guard(self) -> float | None:
        """The change of a score, or of a logit, that certificates allow for; None where no certificate has one."""
        return None

    @abstractmethod
    def predict(self, x: Float[Tensor, "B C H W"]) -> Int[Tensor, " B"]:
        """The class of each image, -1 where it abstains."""

    def outputs(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """The scores that attacks read, of a copy of the images in the precision of the weights.

        Differentiable where the classifier is; their argmax is `predict` unless the classifier says otherwise. Floats;
        of a model that returns whole numbers or booleans, these in float64. Raises `InvalidInput` for a model that has
        no `forward` or returns anything but [B,K].
        """
        if not self.scores_images:
            raise InvalidInput(
                f"{type(self.given).__name__} has no forward(x), and attacks read the scores [B,K] that it returns; "
                "add one (one_hot(predict(x), K) where there are no scores)"
            )
        tensor = next(self.parameters(), None)
        found = self((x if tensor is None or not tensor.is_floating_point() else x.to(tensor.dtype)).clone())
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(x):
            what = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
            raise InvalidInput(
                f"the model returned {what} for {len(x)} images; one score for each class, [{len(x)}, K], is needed"
            )
        found = found.clone() if found.is_inference() else found  # else nothing that is climbed could be computed of it
        return found if found.is_floating_point() else found.to(torch.float64)

    @property
    def scores_images(self) -> bool:
        """True where there is a `forward` that returns scores."""
        return getattr(self.given.forward, "__func__", None) is not nn.Module.forward

    @torch.no_grad()
    def count_outputs(self, x: Float[Tensor, "B C H W"]) -> int:
        """K as the outputs of the first image have it."""
        return self.outputs(x[:1]).shape[1]

    def counts(self, x: Float[Tensor, "B C H W"]) -> Num[Tensor, "B K"]:
        """By what the classes are ranked: votes where there are votes, else the outputs."""
        return self.outputs(x)

    def cost(self, height: int, width: int) -> tuple[int, int]:
        """Evaluations that a forward pass and, at most, `predict` take of one image: one is one ablation scored, or one
        image where there are no ablations.
        """
        return 1, 1

    def predict_with_cost(self, x: Float[Tensor, "B C H W"]) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """The answers of `predict`, and the evaluations each took, or the most it can take."""
        prediction = self.predict(x)
        return prediction, torch.full_like(prediction, self.cost(x.shape[2], x.shape[3])[1])

    @property
    def predicts_apart(self) -> bool:
        """True where `predict` may differ from the outputs' argmax: it, or `forward`, is of the user's own code.

        Never for a randomized classifier, which answers anything once it is asked often enough.
        """
        return not self.randomized and not all(_ours(self.given, name) for name in ("predict", "forward"))

    @property
    def repeats(self) -> bool:
        """True where the same image gets the same answer each time: also of a randomized one with fixed samples."""
        return not self.randomized

    def referee(self) -> nn.Module:
        """The classifier whose `predict` says whether an attack on this one succeeded; see `judge_of`."""
        return self

    def errors(self) -> tuple[float, float]:
        """`prediction_error` and `judge_error`; 0 and 0 unless it is randomized. Raises `InvalidInput` where one is no
        probability in [0, 1).
        """
        if not self.randomized:
            return 0.0, 0.0
        for name, value in (("prediction_error", self.prediction_error), ("judge_error", self.judge_error)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise InvalidInput(f"{name} is {value!r} of {type(self.given).__name__}; give a probability in [0, 1)")
        return float(self.prediction_error), float(self.judge_error)

    def set_guard(self, guard: float) -> None:
        """Allow, from now on, for that change of a score. Raises `InvalidInput` where no votes have a guard."""
        raise InvalidInput(f"guard is {guard}, but a {type(self.given).__name__} casts no votes; drop it")

    def describe(self) -> dict[str, Any]:
        """The keys that a record of a run holds of the classifier besides its weights."""
        return {"ablation": None}

    def in_words(self) -> str:
        """The defense, in a few words."""
        return "undefended"

    def weights_module(self) -> nn.Module:
        """The module that holds the weights, without ablations and defenses around it."""
        return self.given

    def undefended(self) -> Classifier | None:
        """The network inside a defense, for attacks that ignore the defense; None where there is no defense."""
        return None


class CertifiedClassifier(Classifier):
    """A classifier that also proves, image by image, that no patch within a threat changes what it predicts."""

    certifies: ClassVar[bool] = True

    @abstractmethod
    def certify(self, x: Float[Tensor, "B C H W"], threat: Threat | str) -> Certificate:
        """The claim for each image; of a threat, or of its text. Raises `InvalidInput` where nothing can be certified
        of such images.
        """

    def certify_paper(self, x: Float[Tensor, "B C H W"], threat: Threat, exact: Certificate) -> Certificate | None:
        """The certificate of the paper's weaker method beside the `exact` one; None where there is only one method."""
        return None

    def certify_top_k(
        self, x: Float[Tensor, "B C H W"], y: Int[Tensor, " B"], threat: Threat | str, k: int
    ) -> TopKCertificate:
        """Prove that no patch drives class y out of the k with the highest counts. Raises `InvalidInput` where the
        classifier certifies its first class alone.
        """
        raise InvalidInput(f"k is {k}, but a {type(self.given).__name__} certifies its prediction alone; use k 1")


def _ours(model: nn.Module, method: str) -> bool:
    """True where the method is that of a class of this package, and not replaced."""
    if method in vars(model):
        return False
    kind = next((kind for kind in type(model).__mro__ if method in vars(kind)), None)  # None: by `__getattr__`
    return kind is not None and kind.__module__.partition(".")[0] in OURS

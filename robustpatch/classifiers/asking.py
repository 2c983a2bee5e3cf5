"""Classifiers asked with copies of the images, without gradients; their answers are checked, and copies too."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from robustpatch.certificates.exact import Certificate
from robustpatch.classifiers.base import CertifiedClassifier, Classifier
from robustpatch.classifiers.foreign import checked
from robustpatch.classifiers.lending import classes_of, lent, own
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat


@torch.no_grad()
def predict(classifier: Classifier, x: Tensor) -> Int[Tensor, " B"]:
    """The classifier's `predict`, -1 where it abstains. Without gradients, as `certify`: a model may compute something
    else where gradients are wanted.

    Raises `InvalidInput` for anything but one whole number for each image, and for outputs of which none is the largest
    number (see `votes.first_argmax`): an attack that meets them stops, since they are neither the prediction nor
    another.
    """
    return classes_of(classifier.predict(lent(x)), x, f"predict of {type(classifier.given).__name__}")


@torch.no_grad()
def predict_with_cost(classifier: Classifier, x: Tensor) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
    """The same, and the evaluations it took of each image; see `Classifier.predict_with_cost`."""
    prediction, spent = classifier.predict_with_cost(lent(x))
    return classes_of(prediction, x, f"predict of {type(classifier.given).__name__}"), lent(spent)


@torch.no_grad()
def certify(classifier: CertifiedClassifier, x: Tensor, threat: Threat, *method: str) -> Certificate:
    """The classifier's own `certify` of a copy of the images [B,C,H,W]; the answer is a copy too.

    Raises `InvalidInput`, naming the field, for what is no certificate of these images (see `foreign.checked`), and for
    a certificate of another threat: what it says of that one is no claim about this one.
    """
    name = type(classifier.given).__name__
    found = classifier.certify(lent(x), threat, *method)
    if not isinstance(found, Certificate):
        raise InvalidInput(f"certify of {name} returned a {type(found).__name__}; return a robustpatch.Certificate")
    if found.threat != threat:
        raise InvalidInput(
            f"certify of {name} was asked about {threat} and returned a certificate of {found.threat}; certify the "
            "threat that is passed, or certify no image for one that it was not built for"
        )
    classes = classifier.num_classes or None
    # As read once, for a class of theirs.
    return checked(own(checked(found, len(x), classes), Certificate), len(x), classes)

"""Classifiers asked with copies of the images, without gradients; their answers are checked, and copies too."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from robustpatch.certificates.exact import Certificate
from robustpatch.certificates.top_k import TopKCertificate
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
    return _believed(classifier, classifier.certify(lent(x), threat, *method), len(x), threat, "certify")


@torch.no_grad()
def certify_paper(classifier: CertifiedClassifier, x: Tensor, threat: Threat, exact: Certificate) -> Certificate | None:
    """The classifier's `certify_paper`, asked and checked as `certify` is; None where it has no such certificate."""
    found = classifier.certify_paper(lent(x), threat, exact)
    return None if found is None else _believed(classifier, found, len(x), threat, "certify_paper")


@torch.no_grad()
def certify_top_k(
    classifier: CertifiedClassifier, x: Tensor, y: Int[Tensor, " B"], threat: Threat, k: int
) -> TopKCertificate:
    """The classifier's `certify_top_k` of copies; the answer is a copy too.

    Raises `InvalidInput` for what is no such certificate of these images, classes, k and threat.
    """
    name = type(classifier.given).__name__
    found = classifier.certify_top_k(lent(x), lent(y), threat, k)
    if not isinstance(found, TopKCertificate):
        raise InvalidInput(f"certify_top_k of {name} returned a {type(found).__name__}; return a TopKCertificate")
    shapes = {"y": y.dtype, "clean": torch.bool, "certified": torch.bool, "margin": None}
    for field, dtype in shapes.items():
        value = getattr(found, field)
        if not isinstance(value, Tensor) or value.shape != y.shape or dtype not in (None, value.dtype):
            raise InvalidInput(f"certify_top_k of {name} returned another {field} than one for each of {len(x)} images")
    found = own(found, TopKCertificate)
    if found.threat != threat or found.k != k or not torch.equal(found.y, y):
        raise InvalidInput(
            f"certify_top_k of {name} was asked about {threat} and k = {k} and returned a certificate of "
            f"{found.threat} and k = {found.k}, or of other classes; certify what is passed"
        )
    return found


def _believed(classifier: Classifier, found: object, images: int, threat: Threat, method: str) -> Certificate:
    name = type(classifier.given).__name__
    if not isinstance(found, Certificate):
        raise InvalidInput(f"{method} of {name} returned a {type(found).__name__}; return a robustpatch.Certificate")
    if found.threat != threat:
        raise InvalidInput(
            f"{method} of {name} was asked about {threat} and returned a certificate of {found.threat}; certify the "
            "threat that is passed, or certify no image for one that it was not built for"
        )
    classes = classifier.num_classes or None
    # As read once, for a class of theirs.
    return checked(own(checked(found, images, classes), Certificate), images, classes)

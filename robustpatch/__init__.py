"""robustpatch: certified and empirical accuracy of image classifiers under patch attacks, held against each other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import robustpatch.clone  # noqa: F401  robustpatch.attacks and robustpatch.evaluate can be imported from here on

if TYPE_CHECKING:
    from robustpatch.ablations.base import Ablation
    from robustpatch.ablations.kinds import Blocks, Columns, GridBlocks, GridColumns, Rows
    from robustpatch.ablations.parse import parse_ablation
    from robustpatch.ablations.sparse import SparseAblation
    from robustpatch.ablations.union import Union
    from robustpatch.certificates.certificate import Certificate
    from robustpatch.certificates.exact import certify_votes
    from robustpatch.certificates.largest import largest_certified
    from robustpatch.certificates.randomized import Sampling, certify_randomized, predict_randomized
    from robustpatch.certificates.top_k import TopKCertificate, certify_top_k
    from robustpatch.classifiers.as_classifier import as_classifier
    from robustpatch.classifiers.base import CertifiedClassifier, Classifier
    from robustpatch.classifiers.calibration import calibrate_guard
    from robustpatch.classifiers.randomized import RandomizedClassifier
    from robustpatch.classifiers.smoothed import SmoothedClassifier
    from robustpatch.classifiers.wrap import wrap
    from robustpatch.encoding import ComplementChannels, MaskChannel
    from robustpatch.errors import InvalidInput
    from robustpatch.threats import AnyOf, PatchThreat, parse_threat
    from robustpatch.voting.rules import Threshold, TopOne
    from robustpatch.voting.votes import Votes

_HOME = {
    "ablations.base": ("Ablation",),
    "ablations.kinds": ("Blocks", "Columns", "GridBlocks", "GridColumns", "Rows"),
    "ablations.parse": ("parse_ablation",),
    "ablations.sparse": ("SparseAblation",),
    "ablations.union": ("Union",),
    "certificates.certificate": ("Certificate",),
    "certificates.exact": ("certify_votes",),
    "certificates.largest": ("largest_certified",),
    "certificates.randomized": ("Sampling", "certify_randomized", "predict_randomized"),
    "certificates.top_k": ("TopKCertificate", "certify_top_k"),
    "classifiers.as_classifier": ("as_classifier",),
    "classifiers.base": ("CertifiedClassifier", "Classifier"),
    "classifiers.calibration": ("calibrate_guard",),
    "classifiers.randomized": ("RandomizedClassifier",),
    "classifiers.smoothed": ("SmoothedClassifier",),
    "classifiers.wrap": ("wrap",),
    "encoding": ("ComplementChannels", "MaskChannel"),
    "errors": ("InvalidInput",),
    "threats": ("AnyOf", "PatchThreat", "parse_threat"),
    "voting.rules": ("Threshold", "TopOne"),
    "voting.votes": ("Votes",),
}

__all__ = [  # noqa: RUF022  the order of the table above
    "Ablation",
    "Blocks",
    "Columns",
    "GridBlocks",
    "GridColumns",
    "Rows",
    "parse_ablation",
    "SparseAblation",
    "Union",
    "Certificate",
    "certify_votes",
    "largest_certified",
    "Sampling",
    "certify_randomized",
    "predict_randomized",
    "TopKCertificate",
    "certify_top_k",
    "as_classifier",
    "CertifiedClassifier",
    "Classifier",
    "calibrate_guard",
    "RandomizedClassifier",
    "SmoothedClassifier",
    "wrap",
    "ComplementChannels",
    "MaskChannel",
    "InvalidInput",
    "AnyOf",
    "PatchThreat",
    "parse_threat",
    "Threshold",
    "TopOne",
    "Votes",
]


def __getattr__(name: str) -> object:
    """Names are imported when asked for, so that `python -m robustpatch.proof` runs without torch."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"robustpatch.{module}"), name)
    if name in ("attacks", "evaluate"):
        return import_module(f"robustpatch.{name}")
    raise AttributeError(f"module 'robustpatch' has no attribute {name!r}")

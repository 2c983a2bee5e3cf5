"""robustpatch: certified and empirical accuracy of image classifiers under patch attacks, held against each other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustpatch.ablation import Ablation, Blocks, Columns, GridBlocks, GridColumns, Rows, parse_ablation
    from robustpatch.calibration import calibrate_guard
    from robustpatch.certificate import Certificate, certify_votes, largest_certified
    from robustpatch.encoding import ComplementChannels, MaskChannel
    from robustpatch.errors import InvalidInput
    from robustpatch.randomized import RandomizedClassifier
    from robustpatch.sampling import Sampling, certify_randomized, predict_randomized
    from robustpatch.smoothing import SmoothedClassifier
    from robustpatch.sparse import SparseAblation
    from robustpatch.threat import AnyOf, PatchThreat, parse_threat
    from robustpatch.top_k import TopKCertificate, certify_top_k
    from robustpatch.union import Union
    from robustpatch.voting import Threshold, TopOne, Votes
    from robustpatch.wrapping import wrap

_HOME = {
    "ablation": ("Ablation", "Blocks", "Columns", "GridBlocks", "GridColumns", "Rows", "parse_ablation"),
    "certificate": ("Certificate", "certify_votes", "largest_certified"),
    "calibration": ("calibrate_guard",),
    "encoding": ("ComplementChannels", "MaskChannel"),
    "errors": ("InvalidInput",),
    "randomized": ("RandomizedClassifier",),
    "sampling": ("Sampling", "certify_randomized", "predict_randomized"),
    "smoothing": ("SmoothedClassifier",),
    "sparse": ("SparseAblation",),
    "threat": ("AnyOf", "PatchThreat", "parse_threat"),
    "top_k": ("TopKCertificate", "certify_top_k"),
    "union": ("Union",),
    "voting": ("Threshold", "TopOne", "Votes"),
    "wrapping": ("wrap",),
}

__all__ = [  # noqa: RUF022  the order of the table above
    "Ablation",
    "Blocks",
    "Columns",
    "GridBlocks",
    "GridColumns",
    "Rows",
    "parse_ablation",
    "Certificate",
    "certify_votes",
    "largest_certified",
    "calibrate_guard",
    "ComplementChannels",
    "MaskChannel",
    "InvalidInput",
    "RandomizedClassifier",
    "Sampling",
    "certify_randomized",
    "predict_randomized",
    "SmoothedClassifier",
    "SparseAblation",
    "AnyOf",
    "PatchThreat",
    "parse_threat",
    "TopKCertificate",
    "certify_top_k",
    "Union",
    "Threshold",
    "TopOne",
    "Votes",
    "wrap",
]


def __getattr__(name: str) -> object:
    """Names are imported when asked for, so that `python -m robustpatch.proof` runs without torch."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"robustpatch.{module}"), name)
    raise AttributeError(f"module 'robustpatch' has no attribute {name!r}")

"""Evidence of a safety case made again, of a random sample of its images, by the model at hand."""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from scipy.stats import hypergeom

from evaluate.bundle.evidence import evidence_of
from evaluate.cli.options import Options
from evaluate.runs.reloading import loaded_again
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.errors import InvalidInput
from robustpatch.proof.bundle import KINDS, Checked
from robustpatch.threats.parse import parse_threat

FALSE = (0.01, 0.02, 0.05, 0.1)  # shares of false evidence of which it is said how likely they go unseen
_OF_DRAWS = 0.01  # votes of draws that may turn over between two machines
_OF_BOUNDS = 1e-3


@dataclass(frozen=True)
class Sampled:
    """The images of a sample whose evidence was made again, and what came out otherwise, a line each; `unseen`: for a
    share of false evidence among all, the chance that a sample of this size holds none of it.
    """

    images: list[int]
    wrong: list[str]
    unseen: dict[float, float]


def sample(found: Checked, options: Options, number: int, seed: int | None) -> Sampled:
    """Make the evidence of so many images again, drawn at random: by chance that nobody knows before, or by a seed.

    Raises `InvalidInput` where the model or the images are others than the bundle says, and where there is no evidence.
    """
    proved = found.proved.tolist()
    if not proved:
        raise InvalidInput(f"sample is {number}, but no certificate has evidence; leave it out")
    model, images = loaded_again("the bundle", found.about["run"], options)
    draw = random.SystemRandom() if seed is None else random.Random(seed)
    chosen, wrong = sorted(draw.sample(proved, min(number, len(proved)))), list[str]()
    threat = parse_threat(options.patch, images.image_shape[1:], files=False)
    classifier, kind = as_classifier(model), found.about["evidence"]
    for i in chosen:
        if sha256(images.stored(i)).digest() != found.images["sha256"][i].tobytes():
            wrong.append(f"image {i} is another than the bundle's")
            continue
        with torch.no_grad():
            own, content = evidence_of(classifier, images.batch([i])[0].to(options.device), threat)
        if own != kind:
            raise InvalidInput(f"the bundle has {kind}, but the model at hand gives {own}; name the right model")
        file, lines = KINDS[kind][0](content)
        if lines or not file.certified[0] or file.prediction[0] != found.images["prediction"][i]:
            wrong.append(f"image {i}: the model at hand does not certify {found.images['prediction'][i]}")
            continue
        first, stop = next(ends for ends in found.files if ends[0] <= i < ends[1])
        differs = _DIFFER[kind](found.files[first, stop], file, i - first)
        wrong += [f"image {i}: {differs}"] if differs else []
    false = {share: max(1, round(share * len(proved))) for share in FALSE}
    unseen = {share: float(hypergeom.pmf(0, len(proved), some, len(chosen))) for share, some in false.items()}
    return Sampled(chosen, wrong, unseen)


def _votes(stored: Any, fresh: Any, at: int) -> str:
    (was, near), (now, nearer) = stored.votes(slice(at, at + 1)), fresh.votes(slice(0, 1))
    other = np.abs(was - now) > 2 * stored.slack if stored.unit > 1 else (was != now) & (near + nearer == 0)
    return f"{int(other.sum())} of {other.size} votes are others" if other.any() else ""


def _masks(stored: Any, fresh: Any, at: int) -> str:
    other = stored.named[at] != fresh.named[0]
    other |= np.abs(stored.lead[at].astype(float) - fresh.lead[0]) > 1e-9 + 2 * stored.guard
    return f"{int(other.sum())} of {other.size} masked predictions are others" if other.any() else ""


def _bounds(stored: Any, fresh: Any, at: int) -> str:
    was, now = stored.regions(at), fresh.regions(0)
    far = [one for one in was if not abs(was[one] - now.get(one, np.inf)) <= _OF_BOUNDS * max(1.0, abs(was[one]))]
    return f"{len(far)} of {len(was)} regions have other bounds" if far else ""


def _draws(stored: Any, fresh: Any, at: int) -> str:
    if (stored.keys[at] != fresh.keys[0]).any():
        return "its key is of another image"
    for name, number in (("selected", stored.selection), ("counted", stored.estimation)):
        if (np.abs(getattr(stored, name)[at] - getattr(fresh, name)[0]) > max(2, _OF_DRAWS * number)).any():
            return f"{name}, the votes of the draws, are others"
    return ""


_DIFFER = {"votes": _votes, "sums": _votes, "masks": _masks, "bounds": _bounds, "draws": _draws}

"""Ask about a few recorded images once more, before a run goes on: records must be those of the model at hand.

What a model answers under a patch is looked at as well, on a few patched images (`evaluate.model.patched_answers`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

import torch
from torch import Tensor

from evaluate.model.patched_answers import Answers, first_differing, patched_images
from evaluate.runs.batch import Settings, evaluate_batch
from evaluate.runs.records import Record
from robustpatch.ablations.sparse import Draws
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.base import Classifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.data.images import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.threats.base import Threat
from robustpatch.voting.votes import Scored

IMAGES = 8
_SECONDS = 10.0  # after so long no further images are asked about
_CERTIFIED = {"certified_exact": "margin_exact", "certified_margin": "margin_margin"}


@dataclass(frozen=True)
class Recheck:
    """Predicts and certifies recorded images once more, as `evaluate_batch` does, up to eight and about ten seconds."""

    model: torch.nn.Module
    images: ImageSet
    threat: Threat
    settings: Settings

    def check(self, batches: Iterable[tuple[range, Sequence[Record]]], output: str) -> None:
        """Raise `InvalidInput` where a prediction, a certificate or a margin is another than in the batches' records.

        Not where rounding may be why, which is another in other batches and threads: of votes, it may differ by as many
        as lie within twice the guard of turning over, without votes by as much as under a trace of noise, and the batch
        as it was may say the same. Margins without votes are compared where they are whole numbers. A model that is not
        on the device of the run, as in one of Ray's, is not asked: the guard itself may be another there.
        """
        if self._elsewhere():
            return
        started, left = time.monotonic(), IMAGES
        for batch, records in batches:
            done, wanted = 0, min(left, len(batch))
            while done < wanted:
                some = slice(done, wanted if done else 1)  # the first one shows how long the others will take
                for before, again in zip(records[some], self._records(batch[some]), strict=True):
                    if self._unlike(before, again):
                        self._refuse(batch, before, output)
                done = some.stop
                if time.monotonic() - started > _SECONDS:
                    return
            left -= wanted
            if left == 0:
                return

    def check_probes(self, shards: Iterable[tuple[range, Sequence[Record], Answers | None]], output: str) -> None:
        """Raise `InvalidInput` where the model answers patched images of the first eight shards otherwise than was
        noted there, and not by rounding: certificates speak of what it answers under a patch, which clean images do
        not show. A foreign model that declares to answer by chance is not asked.
        """
        if not self._classifier.repeats or self._elsewhere():
            return
        started = time.monotonic()
        for batch, records, before in islice(shards, IMAGES):
            if before is not None:
                x = self.images.batch(batch)[0].to(self.settings.device)
                some, rows = patched_images(x, records, self.threat)
                differing = first_differing(self.model, some, len(batch), before)
                if differing:
                    number, one, other = differing
                    raise InvalidInput(
                        f"output {output} has prediction {one} of image {rows[number]} under a patch, but the model at "
                        f"hand gives {other}: its code, a file that it reads or a package is not what it was; name "
                        "another output"
                    )
            if time.monotonic() - started > _SECONDS:
                return

    @property
    def _classifier(self) -> Classifier:
        return as_classifier(self.model)

    def _elsewhere(self) -> bool:
        """True where the model is on a device of another kind than the run's."""
        placed = next(
            (tensor.device for tensor in chain(self.model.parameters(), self.model.buffers())), torch.device("cpu")
        )
        return placed.type != torch.device(self.settings.device).type

    def _refuse(self, batch: range, before: Record, output: str) -> None:
        again = self._records(batch)[before.index - batch.start]
        differing = self._unlike(before, again)
        if not differing:
            return
        name = differing[0]
        raise InvalidInput(
            f"output {output} has {name} {getattr(before, name)} of image {before.index}, but the model at hand gives "
            f"{getattr(again, name)}: its code or a package is not what it was; name another output"
        )

    def _records(self, batch: range, noise: float = 0.0, seed: int = 0) -> list[Record]:
        x, y = self.images.batch(batch)
        if noise:
            x = (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)
        x, y = x.to(self.settings.device), y.to(self.settings.device)
        settings = replace(self.settings, gallery=0)
        return evaluate_batch(self.model, x, y, batch.start, self.threat, (), settings).records

    def _image(self, index: int) -> Tensor:
        return self.images.batch([index])[0].to(self.settings.device)

    def _unlike(self, before: Record, again: Record) -> list[str]:
        """The fields of the record that are another now, and not by rounding."""
        differing = self._differing(before, again)
        return differing if differing and not self._rounding(before, again, differing) else []

    def _differing(self, before: Record, again: Record) -> list[str]:
        voted = voting_classifier(self._classifier) is not None
        names = [name for name in ("prediction", *_CERTIFIED) if getattr(before, name) != getattr(again, name)]
        for name in _CERTIFIED.values():
            one, other = getattr(before, name), getattr(again, name)
            if one is None or other is None:
                names += [name] if one is not other else []
            elif abs(one - other) > 1e-9 and (voted or (one.is_integer() and other.is_integer())):
                names.append(name)
        return names

    def _rounding(self, before: Record, again: Record, differing: list[str]) -> bool:
        """True where rounding may be why these fields of the record differ."""
        smoothed = voting_classifier(self._classifier)
        if smoothed is not None and smoothed is not self.model:  # sampled
            return before.close_votes + again.close_votes + self._loose(smoothed, before.index) > 0
        if smoothed is not None:
            allowed = self._loose(smoothed, before.index)
            votes = smoothed.votes(self._image(before.index))
            counts = votes.counts[0] / votes.unit
            tied, unsure = float(abs(counts[before.prediction] - counts[again.prediction])) <= allowed, False
        else:
            exact = all(tensor.dtype == torch.float32 for tensor in self.model.parameters())
            index = range(before.index, before.index + 1)
            noisy = [self._records(index, 1e-4 if exact else 1e-2, seed)[0] for seed in range(8)]
            tied, unsure = (
                any(getattr(one, name) != getattr(again, name) for one in noisy)
                for name in ("prediction", "certified_exact")
            )
            allowed = max(_moved(again.margin_exact, one.margin_exact) for one in noisy)
        forgiven = {"prediction": tied}
        for name, margin in _CERTIFIED.items():
            one, other = getattr(before, margin), getattr(again, margin)
            forgiven[margin] = _moved(one, other) <= allowed
            near = one is not None and other is not None and min(abs(one), abs(other)) <= allowed
            forgiven[name] = unsure or (near and forgiven[margin])
        return all(forgiven[name] for name in differing)

    def _loose(self, model: SmoothedClassifier, index: int) -> float:
        """By how many votes the margin of the image may be another, where no score is by more than the guard."""
        if isinstance(model.ablation, Draws):  # a sample of a sparse ablation's views, the same at every call
            return 0.0
        scores = model.certifiable_scores(self._image(index))
        # Whether a vote is close is itself a matter of the guard.
        votes = model.voting.votes(scores, 2 * model.guard_on(scores.device))
        if isinstance(votes, Scored):
            return 4 * votes.slack * scores.shape[1] / votes.unit
        return 2.0 * int(votes.close.sum())


def _moved(one: float | None, other: float | None) -> float:
    """By how much a margin is another; infinite where one is there and the other not."""
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    return abs(one - other)

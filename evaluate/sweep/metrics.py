"""rows -> numbers: the settings of a sweep, and which of them the validation images choose."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evaluate.results.metrics import Share, as_json
from evaluate.sweep.columns import margin_column, top_column
from evaluate.sweep.records import SweepRun
from robustpatch.errors import InvalidInput

_ABLATION = re.compile(r"([^:]*):(\d+)(.*)")

Key = tuple[str, str]  # SHA-256 of a checkpoint and its voting: what a setting is, under whatever name


def family_and_size(ablation: str) -> tuple[str, int]:
    """The kind of an ablation, and the retained size: ("columns", 2), ("2*grid-blocks", 4), ("columns:s/10", 19).

    Every ablation writes itself as KIND:SIZE, with what else belongs to its kind, a stride or a width, after the size.
    """
    match = _ABLATION.fullmatch(ablation)
    if match is None:
        raise InvalidInput(f"ablation is {ablation!r}, in which no size stands after a colon; name it KIND:SIZE")
    kind, size, rest = match.groups()
    return (f"{kind}:s{rest}" if rest else kind), int(size)


@dataclass(frozen=True)
class Setting:
    """One checkpoint under one voting rule, over all images.

    `exact` and `margin` are certified accuracies by patch; `exact_by_side[m - 1]` and `margin_by_side[m - 1]` count the
    images certified for the right label against the m×m square. `median_side` and `mean_side` are of the largest
    certified square, 0 for images classified wrongly. `clean_top` by k, and `certified_top` by patch and k, say how
    often the label is among the k most voted, and how often it is certified to stay there.
    """

    checkpoint: str
    sha256: str
    ablation: str
    voting: str
    clean: Share
    exact: dict[str, Share]
    margin: dict[str, Share]
    exact_by_side: tuple[int, ...]
    margin_by_side: tuple[int, ...]
    median_side: float
    mean_side: float
    close_votes: int
    votes: int
    clean_top: dict[int, Share] = field(default_factory=dict)
    certified_top: dict[str, dict[int, Share]] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.sha256, self.voting

    @property
    def family(self) -> str:
        return family_and_size(self.ablation)[0]

    @property
    def size(self) -> int:
        return family_and_size(self.ablation)[1]

    def __str__(self) -> str:
        return f"{self.checkpoint}, {self.voting}"

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON types, with intervals."""
        return {**as_json(self), "family": self.family, "size": self.size}


def settings_of(run: SweepRun) -> list[Setting]:
    """The settings of a sweep, by checkpoint and voting in the order of its command."""
    return [
        _setting(run, checkpoint, voting)
        for checkpoint in run.configuration["checkpoints"]
        for voting in run.configuration["votings"]
    ]


def _setting(run: SweepRun, checkpoint: dict[str, Any], voting: str) -> Setting:
    rows, patches = run.columns[checkpoint["name"], voting], run.configuration["patches"]
    top_k = run.configuration.get("top_k", ())
    correct = rows["prediction"] == rows["label"]
    sides = range(1, min(run.configuration["image_size"]) + 1)
    exact, margin = (np.where(correct, rows[f"largest_certified{end}"], 0) for end in ("", "_margin"))

    def share(hits: np.ndarray) -> Share:
        return Share(int(hits.sum()), len(correct))

    return Setting(
        checkpoint=checkpoint["name"],
        sha256=checkpoint["sha256"],
        ablation=checkpoint["ablation"],
        voting=voting,
        clean=share(correct),
        exact={p: share(correct & (rows[margin_column("exact", p)] >= 0)) for p in patches},
        margin={p: share(correct & (rows[margin_column("margin", p)] >= 0)) for p in patches},
        exact_by_side=tuple(int((exact >= m).sum()) for m in sides),
        margin_by_side=tuple(int((margin >= m).sum()) for m in sides),
        median_side=float(np.median(exact)),
        mean_side=float(exact.mean()),
        close_votes=int(rows["close_votes"].sum()),
        votes=len(correct) * checkpoint["ablations"] * run.configuration["num_classes"],
        clean_top={k: share(rows["rank"] < k) for k in top_k},
        certified_top={p: {k: share(rows[top_column(k, p)] >= 0) for k in top_k} for p in patches if top_k},
    )


def by_family(settings: Iterable[Setting]) -> dict[str, list[Setting]]:
    """The settings of each family by size, families in the order of the command."""
    families: dict[str, list[Setting]] = {}
    for setting in settings:
        families.setdefault(setting.family, []).append(setting)
    return {family: sorted(some, key=lambda setting: setting.size) for family, some in families.items()}


def envelope(settings: Iterable[Setting]) -> list[int]:
    """The most images that any one setting certifies, by side: no choice made beforehand need reach it."""
    return [max(hits) for hits in zip(*(setting.exact_by_side for setting in settings), strict=True)]


def telling_sides(settings: Iterable[Setting]) -> range:
    """The sides 1, … up to the first at which no setting certifies anything; at all larger ones none does."""
    most = envelope(settings)
    return range(1, min(len(most), sum(hits > 0 for hits in most) + 1) + 1)


@dataclass(frozen=True)
class Choice:
    """Picks settings by what validation images say of them, and never by test images.

    `judged` are the validation sweep's settings; `images` says which images those are.
    """

    judged: Mapping[Key, Setting]
    images: str

    def best(self, settings: Iterable[Setting], merit: Callable[[Setting], tuple[float, ...]]) -> Setting:
        """The setting with the greatest merit on validation, the first of equals."""
        return max(settings, key=lambda setting: merit(self.judged[setting.key]))

    def against(self, settings: Iterable[Setting], patch: str) -> Setting:
        """The setting certified most often against `patch`; of equals, the most accurate."""
        return self.best(settings, lambda s: (s.exact[patch].hits, s.clean.hits))

    def at_side(self, settings: Iterable[Setting], m: int) -> Setting:
        """The setting certified most often against the m×m square; of equals, against all squares together."""
        return self.best(settings, lambda s: (s.exact_by_side[m - 1], s.mean_side))

    def for_all_sides(self, settings: Iterable[Setting]) -> Setting:
        """The one to fix for squares of unknown side: the greatest mean largest certified side, which is the sum of
        certified accuracy over all sides."""
        return self.best(settings, lambda s: (s.mean_side, s.clean.hits))

    def as_dict(self, settings: list[Setting], patches: Iterable[str]) -> dict[str, Any]:
        """All that is chosen among `settings`, by name, as JSON types."""
        families = by_family(settings)
        sides = range(1, len(settings[0].exact_by_side) + 1)
        return {
            "on": self.images,
            "by_family": {p: {f: str(self.against(some, p)) for f, some in families.items()} for p in patches},
            "for_all_sides": str(self.for_all_sides(settings)),
            "at_side": [str(self.at_side(settings, m)) for m in sides],
        }


def choice_by(validation: SweepRun, wanted: Mapping[Key, str], patches: Iterable[str]) -> Choice:
    """The choice that an earlier sweep of validation images makes among the settings `wanted`, each with its name.

    Raises `InvalidInput` where that sweep is of other images, or lacks a setting or a patch.
    """
    found = validation.configuration
    if found["split"] != "validation":
        raise InvalidInput(f"choose_by is a sweep of {found['split']} images; name one with --split validation")
    judged = {setting.key: setting for setting in settings_of(validation)}
    lacking = [name for key, name in wanted.items() if key not in judged]
    lacking += [f"{patch} patch" for patch in patches if patch not in found["patches"]]
    if lacking:
        raise InvalidInput(
            f"choose_by lacks {'; '.join(lacking)}; sweep those very weights and patches on validation images"
        )
    return Choice(judged, f"{found['num_images']:,} {found['dataset']} validation images")

"""The table that a run ends with."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.text import Text

from evaluate.results.columns import ATTACKS, Line
from evaluate.results.metrics import Allowance, Gap, Summary
from evaluate.results.tables import Table


def summary_table(
    summary: Summary,
    *,
    title: str,
    guard: float | None,
    deviation: float | None,
    seconds: float,
    float32_deviation: float | None = None,
    top_k: int = 1,
) -> Group:
    """Clean, certified and empirical accuracy with intervals, and the verdict below. `guard` is None without votes.

    `deviation` is the largest change of a score between evaluations, `float32_deviation` the largest distance from
    float32, both as measured; None where they were not.

    An attack's evaluations, and the share of open placements it tried, are those on images that are not certified; its
    time includes the certified ones. The vote-level adversary is what is left if every touched ablation may be turned.
    """
    lines = [Line("clean", summary.clean)]
    if summary.certified_margin is not None:
        lines.append(Line("certified (margin)", summary.certified_margin))
    if summary.certified_exact is not None:
        name = certified_name(summary.allowance) if top_k == 1 else f"certified (top {top_k})"
        lines.append(Line(name, summary.certified_exact))
    ends = [len(lines) - 1]
    lines += [Line(f"under {name}", attack.accuracy, attack) for name, attack in summary.attacks.items()]
    if summary.attacks:
        lines.append(Line("under all attacks", summary.under_all))
        if summary.under_votes is not None:
            lines.append(Line("vote-level adversary", summary.under_votes))
        ends.append(len(lines) - 1)
    table = Table.of([column for column in ATTACKS if column.brief], lines)
    known = summary.attacks and summary.gap is not None
    last = ["gap, undecided", f"{summary.gap:.1%}"] if known else ["all", ""]
    table.rows.append((*last, *[""] * (len(table.names) - 3), f"{seconds:.1f} s"))
    notes = []
    if guard is not None:
        measured = "" if deviation is None else f", measured deviation {deviation:.1e}"
        votes = f"{summary.close_votes} votes close"
        if summary.votes:
            votes = (
                f"{summary.close_votes} of {summary.votes:,} votes close ({summary.close_votes / summary.votes:.2e})"
            )
        measured += "" if float32_deviation is None else f", {float32_deviation:.1e} from float32"
        notes.append(Text(f"guard {guard:g}{measured}; {votes}"))
    elif float32_deviation is not None:
        notes.append(Text(f"measured deviation {float32_deviation:.1e} from float32"))
    for name, attack in summary.attacks.items():
        if attack.out_of_threat:
            notes.append(Text(f"{name}: {attack.out_of_threat} proposals left the threat model and do not count"))
    if summary.undecided is not None and summary.undecided.images:
        notes.append(Text(gap_text(summary.undecided)))
    return Group(table.terminal(title, ends=ends), *notes, verdict(summary, top_k))


def gap_text(gap: Gap) -> str:
    """What is left between proof and attacks, taken apart."""
    turned, missing = _counts(gap.turned), _counts({str(votes): images for votes, images in gap.missing.items()})
    return (
        f"the gap is {gap.images} images, {gap.refuted} of them refuted by the vote-level adversary; the best patch on "
        f"each turned so many of the touched ablations ({turned}) and lacked so many votes ({missing})"
    )


def _counts(images: Mapping[str, int]) -> str:
    """How many images each value has; of many values, the least, the median and the greatest."""
    if len(images) <= 6:
        return ", ".join(f"{value}: {count}" for value, count in images.items())
    in_order = sorted(images, key=_size)
    all_values = [value for value in in_order for _ in range(images[value])]
    return f"from {all_values[0]} to {all_values[-1]}, median {all_values[len(all_values) // 2]}"


def _size(value: str) -> float:
    some, _, all_ = value.partition(" of ")
    return int(some) / max(1, int(all_ or 1))


def certified_name(allowance: Allowance | None) -> str:
    """What the certified accuracy is called, of exact proofs or of such as hold with a confidence."""
    return "certified (exact)" if allowance is None else f"certified at {100 * allowance.confidence:g}%"


def verdict(summary: Summary, top_k: int = 1) -> Text:
    """The run in one sentence, HELD, BROKEN, NOT TESTED or NO CERTIFICATE first."""
    attacked = (
        f"{summary.certified_attacked} of {summary.certified_images} certified images attacked without pruning, "
        f"{summary.certified_patches:,} patches judged, {summary.certified_evaluations:,} evaluations"
    )
    found = _changed(summary, top_k)
    if summary.verdict == "broken":
        return Text(f"BROKEN: {found}; {attacked}", style="bold red")
    if summary.verdict == "no certificate":
        return Text("NO CERTIFICATE: this classifier proves nothing, so there is none to break", style="bold yellow")
    if summary.certified_images == 0:
        return Text("HELD: no image was certified, so there was no certificate to break", style="bold yellow")
    if summary.verdict == "not tested":
        abstained = summary.allowance is not None and summary.allowance.abstained
        found = f"{found}; " if summary.violations or abstained else ""
        return Text(f"NOT TESTED: {found}{attacked}", style="bold yellow")
    return Text(f"HELD: {found}; {attacked}", style="bold green")


def _changed(summary: Summary, top_k: int) -> str:
    """How many certified predictions were changed, and how many chance allows where certificates are randomized."""
    images = sorted({violation["index"] for violation in summary.violations})
    if top_k > 1:
        found = f"{len(images)} certified labels were (images {_some(images)})" if images else "no certified label was"
        return f"{found} driven out of the top {top_k}"
    text = f"{len(images)} certified predictions were changed (images {_some(images)})"
    random = summary.allowance
    if random is None:
        return text if images else "no certified prediction was changed"
    allowed = f"where an error of at most {random.error:.3%} an image allows {random.most} of {random.images}"
    if random.abstained:
        allowed += f" and {random.abstained} abstentions of a model declared to be randomized are none"
    if not images:
        return f"no certified prediction was changed, {allowed}"
    return f"{text}, {allowed} (P ≤ {random.probability:.2g} for so many)"


def _some(numbers: list[int], most: int = 8) -> str:
    return ", ".join(map(str, numbers[:most])) + (", …" if len(numbers) > most else "")

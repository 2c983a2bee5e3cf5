"""A run's result in sentences: how many images survive, what is undecided, and the verdict."""

from __future__ import annotations

from rich.text import Text

from evaluate.results.metrics import Allowance, Gap, Summary
from robustpatch.cli.text import counted, some_of

_LITTLE = 0.01  # of the open places: attacks that tried no more have hardly begun


def gap_text(gap: Gap) -> str:
    """Say in words what neither proof nor attacks decide, and how near to a decision it is."""
    one = gap.images == 1
    verb, all_ = ("is", "it") if one else ("are", "them")
    text = (
        f"{counted(gap.images, 'image')} {verb} undecided: nothing proves that no patch can change the answer on "
        f"{all_}, and no attack tried found one that does"
    )
    if gap.refuted:
        those = all_ if gap.refuted == gap.images else f"{gap.refuted} of them"
        text += f". No proof from the same votes could certify {those}: that takes another classifier"
    short = [votes for votes in sorted(gap.missing) for _ in range(gap.missing[votes])]
    if not short:
        return text
    least, median, most = short[0], short[(len(short) - 1) // 2], short[-1]
    if least == most:
        return f"{text}. The best patch found fell {counted(least, 'vote')} short{'' if one else ' on each'}"
    half = f", on half of them at most {median}" if least < median < most else ""
    return f"{text}. The best patches found fell {least} to {most} votes short{half}"


def survival_text(summary: Summary, top_k: int = 1) -> str:
    """Say what an engineer asks first: how many images stood up to what was tried, and how many provably to
    everything.
    """
    total = counted(summary.images, "image" if top_k == 1 else "label")
    what = total if top_k == 1 else f"{total}, as one of the first {top_k},"
    stand, right = summary.under_all.hits, summary.clean.hits
    text = f"{stand:,} of {what} survive{'s' * (stand == 1)} every attack tried"
    if not summary.attacks:
        text = f"{right:,} of {what} {'is' if right == 1 else 'are'} right, and no attack was run"
    tried = [one.visited for one in summary.attacks.values() if one.visited is not None]
    if tried and max(tried) < _LITTLE:
        most = f"more than {max(tried):.1%}" if max(tried) >= 0.0005 else "as much as 0.1%"
        text += f", of which none tried {most} of the places: that says little"
    if summary.certified_exact is None:
        return text
    sure = "" if summary.allowance is None else f", each with {100 * summary.allowance.confidence:g}% confidence"
    proved = summary.certified_exact.hits
    all_ = f"provably survive{'s' * (proved == 1)} all"
    if summary.verdict == "broken":
        all_ = f"{'was' if proved == 1 else 'were'} certified to survive all, and not all did"
    return f"{text}; {proved:,} {all_}{sure}"


def certified_name(allowance: Allowance | None, top_k: int = 1, *, alerts: bool = False) -> str:
    """Name the certified accuracy: of exact proofs, of such as hold with a confidence, or that there is an alert."""
    if alerts:
        return "certified detection"
    if top_k > 1:
        return f"certified (top {top_k})"
    return "certified (exact)" if allowance is None else f"certified at {100 * allowance.confidence:g}%"


def verdict(summary: Summary, top_k: int = 1) -> Text:
    """The run in one sentence, HELD, BROKEN, NOT TESTED or NO CERTIFICATE first."""
    attacked = (
        f"{summary.certified_attacked} of {counted(summary.certified_images, 'certified image')} attacked without "
        f"pruning, {counted(summary.certified_patches, 'patch', 'patches')} judged, "
        f"{counted(summary.certified_evaluations, 'evaluation')}"
    )
    found = _changed(summary, top_k)
    if summary.verdict == "broken":
        return Text(f"BROKEN: {found}; {attacked}", style="bold red")
    if summary.verdict == "no certificate":
        return Text("NO CERTIFICATE: this classifier proves nothing, so there is none to break", style="bold yellow")
    if summary.certified_images == 0:
        return Text("NOT TESTED: no image was certified, so there was no certificate to break", style="bold yellow")
    if summary.verdict == "not tested":
        abstained = summary.allowance is not None and summary.allowance.abstained
        found = f"{found}; " if summary.violations or abstained else ""
        return Text(f"NOT TESTED: {found}{attacked}", style="bold yellow")
    return Text(f"HELD: {found}; {attacked}", style="bold green")


def _changed(summary: Summary, top_k: int) -> str:
    """Count in words the certified predictions that were changed, and those that chance allows."""
    images = sorted({violation["index"] for violation in summary.violations})
    if top_k > 1:
        found = f"{_were(images, 'certified label')} (images {some_of(images)})" if images else "no certified label was"
        return f"{found} driven out of the top {top_k}"
    text = f"{_were(images, 'certified prediction')} changed (images {some_of(images)})"
    random = summary.allowance
    if summary.false_alerts is not None:
        return f"{text} without an alert"
    if random is None:
        return text if images else "no certified prediction was changed"
    allowed = f"where an error of at most {random.error:.3%} an image allows {random.most} of {random.images}"
    if random.abstained:
        allowed += f" and {random.abstained} abstentions of a model declared to be randomized are none"
    if not images:
        return f"no certified prediction was changed, {allowed}"
    return f"{text}, {allowed} (P ≤ {random.probability:.2g} for so many)"


def _were(images: list[int], what: str) -> str:
    return f"{counted(len(images), what)} {'was' if len(images) == 1 else 'were'}"

"""A report -> one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from markupsafe import Markup

from evaluate.report.cards import AttackedPicture, Card, MapPicture
from evaluate.report.data import Report
from evaluate.report.pictures import ramp, sides_chart
from evaluate.results.metrics import Share
from evaluate.results.report_columns import ATTACKS, CLASSES, Part, Sizes, exactly, interval, percent
from evaluate.results.table import Table
from robustpatch.cli.text import counted
from robustpatch.errors import InvalidInput
from robustpatch.threats.growing import parse_growing
from robustpatch.threats.parse import parse_threat

OUTCOMES = {
    "violated": "certified, yet changed",
    "certified": "certified",
    "broken": "broken",
    "standing": "standing, not certified",
    "wrong": "wrong before any attack",
}
PARTS = {
    "certified": "right, certified",
    "standing": "right, standing, not certified",
    "broken": "right, broken by an attack",
    "wrong": "wrong before any attack",
    "violated": "certified, yet changed",
}
_SAID = {  # what is known of the images of each part
    "certified": "{are} proved safe: no such patch, anywhere and whatever is on it, changes the right answer.",
    "standing": "{are} undecided: no attack tried broke {them}, and nothing proves that none can.",
    "broken": "can be fooled: an attack found a patch that changes the right answer.",
    "wrong": "{are} wrong before any attack.",
    "violated": "{were} certified, and changed all the same: the proof is wrong, or what it assumes is.",
}
_WORK = (
    "Accuracy under each attack, the images that it broke, and what it spent. An evaluation is one ablation scored "
    "forward; a backward pass counts one more. Open images are not certified, and “tried” is the share of their "
    "places; on certified ones no place is skipped and every ablation is scored again."
)
_TONES = {"held": "good", "broken": "bad", "not tested": "doubt", "no certificate": "doubt"}


def page(report: Report) -> str:
    """The HTML. Equal reports give equal pages; all that comes from names is escaped."""
    js, digest = script("gallery.js")
    word, _, sentence = report.verdict.partition(": ")
    present, sizes = [card.outcome for card in report.cards], Sizes.of(report.growing)
    return render(
        "template.html.j2",
        report=report,
        summary=headline(report),
        word=word,
        sentence=sentence[:1].upper() + sentence[1:] + ".",
        tone=_tone(report),
        certified_name=certified_name(report),
        parts=[(part, part_text(report, part)) for part in parts(report)],
        certifies=report.summary["certified_exact"] is not None,
        covers=_covers(report),
        gap_text=gap_picture_text(report),
        sides_text=sides_text(report),
        chart=Markup(sides_chart(report.sides, tested_side(report), sizes.size)) if report.sides else "",
        sizes=sizes,
        ramp=ramp(report.scale),
        maps=any(card.maps for card in report.cards),
        names=outcome_names(report),
        outcomes=[(kind, present.count(kind)) for kind in OUTCOMES if kind in present],
        sides=Table.of(sizes.columns, report.sides.items()).html(_by_size(sizes)),
        attacks=attacks_table(report).html(_WORK, "numbers stacked"),
        classes=Table.of(CLASSES, report.classes).html("Accuracy by class, % of its images"),
        notes=notes_table(report).html("What decides the records, and where they were made", "plain"),
        js=js,
        script_hash=digest,
    )


def script(name: str) -> tuple[Markup, str]:
    """A script of this package, and the hash by which a page's policy allows it alone."""
    js = _asset(name)
    return Markup(js), base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()


def render(template: str, **content: Any) -> str:
    """A template of this package with the report's style; all that is no `Markup` is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "counted": counted,
        "exactly": exactly,
        "interval": interval,
        "facts": facts,
        "places": places,
        "map_text": _map_text,
    }
    return environment.from_string(_asset(template)).render(css=Markup(_asset("style.css")), **content)


def _asset(name: str) -> str:
    return resources.files("robustpatch.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _covers(report: Report) -> str:
    """The share of the image that the threat covers, in words; of several alternatives, from the least to the most."""
    if report.threat is None:
        return ""
    least, most = (f"{100 * end(report.threat.shares):.2g}%" for end in (min, max))
    return f"covers {least} of the image" if least == most else f"covers {least} to {most} of the image"


def _tone(report: Report) -> str:
    return _TONES[report.summary["verdict"]]


def attacks_table(report: Report) -> Table:
    """Accuracy under each attack, what it broke, and what it spent."""
    return Table.of(ATTACKS, [row.line() for row in report.attacks])


def notes_table(report: Report) -> Table:
    """Configuration, versions and machine."""
    return Table(("name", "value"), (True, True), notes(report))


def headline(report: Report) -> dict[str, Share | None]:
    """The numbers of the headline; None where there is none."""
    names = ("clean", "certified_margin", "certified_exact", "under_all", "false_alerts")
    found = {name: report.summary.get(name) for name in names}
    return {name: None if one is None else Share(one["hits"], one["total"]) for name, one in found.items()}


def certified_name(report: Report) -> str:
    allowance = report.summary["allowance"]
    if report.summary.get("false_alerts") is not None:
        return "certified detection"
    return "certified (exact)" if allowance is None else f"certified at {100 * allowance['confidence']:g}%"


def outcome_names(report: Report) -> dict[str, str]:
    """The name of each outcome."""
    return {kind: _worded(report, name) for kind, name in OUTCOMES.items()}


def _worded(report: Report, name: str) -> str:
    """Nothing stands where nothing attacks, and nothing need be called not certified where nothing is."""
    if not report.attacked:
        return name.replace("standing, ", "")
    return name if report.summary["certified_exact"] is not None else name.replace(", not certified", "")


def parts(report: Report) -> list[Part]:
    """The parts of all images that occur, in the order of the picture."""
    attacked, found = report.attacked, report.parts
    named = {kind: name if attacked else name.replace("standing, ", "") for kind, name in PARTS.items()}
    return [Part(kind, name, found[kind], found[kind] / report.images) for kind, name in named.items() if found[kind]]


def part_text(report: Report, part: Part) -> str:
    """The images of a part in words that go on after how many they are."""
    one = part.count == 1
    text = _SAID[part.kind]
    if part.kind == "standing" and report.summary["certified_exact"] is None:
        text = "{are} still right: no attack tried broke {them}, and this classifier proves nothing."
    if part.kind == "standing" and not report.attacked:
        text = "{are} right, but not proved: no attack was run."
        text = text if report.summary["certified_exact"] is not None else "{are} right: no attack was run."
    words = ("is", "was", "it") if one else ("are", "were", "them")
    text = text.format(**dict(zip(("are", "were", "them"), words, strict=True)))
    more = (report.gap or "").partition(". ")[2] if part.kind == "standing" else ""
    return f"{text} {more}." if more else text


def gap_picture_text(report: Report) -> str:
    """The picture of the gap in words."""
    return "Of all images: " + "; ".join(f"{percent(part.share)} {part.name}" for part in parts(report))


def tested_side(report: Report) -> int | None:
    """The size of the threat where it is one of those that the picture shows."""
    try:
        threat = parse_threat(report.configuration["threat"], files=False)
        size = max(threat.threats[0].height, threat.threats[0].width)
        same = parse_growing(report.growing)(size) == threat
    except InvalidInput:  # of a file that the run was given
        return None
    return size if same else None


def sides_text(report: Report) -> str:
    each = ", ".join(f"{side}: {percent(share.value)}" for side, share in report.sides.items())
    return f"{_by_size(Sizes.of(report.growing))} in pixels: {each}"


def _by_size(sizes: Sizes) -> str:
    return f"Certified accuracy by {sizes.size} of a {sizes.patch}"


def facts(card: Card, growing: str) -> str:
    """One image in a line or two."""
    text = f"Label {card.label}, predicted {card.prediction}"
    attacked = card.attacked
    if attacked is not None:
        by = f"{attacked.by}, " if attacked.by and attacked.by != attacked.attack else ""
        text += f", under the patch {attacked.prediction} (by {by}{attacked.attack})"
    found = []
    if card.margin is not None:
        found.append(f"worst margin {card.margin:.4g}".replace("-", "−"))
    if card.largest_certified is not None:
        size, sizes = card.largest_certified, Sizes.of(growing)
        found.append(f"certified up to {sizes.called.format(size)}" if size else f"certified against no {sizes.name}")
    if card.violations:
        found.append(f"changed by {', '.join(card.violations)}")
    rest = ", ".join(found)
    return f"{text}. {rest[:1].upper()}{rest[1:]}." if rest else f"{text}."


def places(attacked: AttackedPicture) -> str:
    """The places of the patches, in pixels."""
    return " and ".join(f"row {row}, column {column}" for row, column in attacked.corners)


def _map_text(found: MapPicture) -> str:
    text = f"Vulnerability map: margins from {found.worst} to {found.best} votes over {found.placements} placements"
    return text if found.open is None else f"{text}, {found.open} of them open"


def notes(report: Report) -> list[tuple[str, str]]:
    """Configuration, versions and machine as names and values."""
    found: list[tuple[str, str]] = []
    for key, value in report.configuration.items():
        for one in value if key == "attacks" else [value]:
            found.append((key, one if isinstance(one, str) else json.dumps(one)))
    for key in ("measured_deviation", "float32_deviation", "seconds", "python", "threads", "device_name"):
        if key in report.summary:
            value = report.summary[key]
            found.append((key, f"{value:.3g}" if isinstance(value, float) else str(value)))
    return found + [(name, version) for name, version in report.summary.get("versions", {}).items()]

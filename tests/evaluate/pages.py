"""Reading a report as a browser would: what is on the page, and what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path"}


@dataclass
class Page(HTMLParser):
    """A strict reader: every tag closed in its turn. `texts` holds what is inside elements of each tag or class."""

    attributes: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    open: list[tuple[str, set[str]]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    @classmethod
    def of(cls, html: str) -> Page:
        page = cls()
        page.feed(html)
        page.close()
        assert page.open == []
        return page

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute twice in {tag} {attrs}"
        self.attributes.append((tag, given))
        marks = {tag, *(f".{name}" for name in given.get("class", "").split())}
        for mark in marks:
            self.texts.setdefault(mark, []).append("")
        if tag not in VOID or self.inside("svg"):
            self.open.append((tag, marks))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1][0] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> inside <{self.open[-1][0]}>"
        self.open.pop()

    def handle_data(self, data):
        for _, marks in self.open:
            for mark in marks:
                self.texts[mark][-1] += data

    def inside(self, tag: str) -> bool:
        return any(name == tag for name, _ in self.open)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.attributes if name == tag]

    def said(self, mark: str) -> list[str]:
        """The texts of the elements of that tag or .class, white space as one space."""
        return [" ".join(text.split()) for text in self.texts.get(mark, [])]


def faults(html: str) -> list[str]:
    """What a page that needs nothing but itself, and that everybody can read, must not have."""
    page, found = Page.of(html), []
    for tag, given in page.attributes:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            value = given.get(name, "")
            if name in given and not value.startswith(
                ("data:image/png;base64,", "data:image/jpeg;base64,", "data:,", "#")
            ):
                found.append(f"{tag} fetches {value}")
        found += [f"{tag} handles {name}" for name in given if name.startswith("on")]
        if tag == "img" and "alt" not in given:
            found.append("an image without alt")
        if "url(" in given.get("style", "").replace("url(#", ""):
            found.append(f"style {given['style']}")
    style = "".join(page.texts["style"])
    found += re.findall(r"@import|url\([^#)]*\)|https?:", style + "".join(page.texts["script"]))
    ids = [given["id"] for _, given in page.attributes if "id" in given]
    found += [f"id {one} twice" for one in {one for one in ids if ids.count(one) > 1}]
    for _, given in page.attributes:
        links = [given[name][1:] for name in ("href", "xlink:href") if given.get(name, "")[:1] == "#"]
        named = given.get("aria-labelledby", "").split() + links
        found += [f"no element {one}" for one in named if one not in ids]
    levels = [int(tag[1]) for tag, _ in page.attributes if re.fullmatch("h[1-6]", tag)]
    steps = zip([0, *levels], levels, strict=False)
    found += [f"heading {after} after {before}" for before, after in steps if after > before + 1]
    found += ["not one h1"] * (levels.count(1) != 1)
    found += ["a table without caption"] * (len(page.all("table")) != len([c for c in page.said("caption") if c]))
    return found


def colours(css: str) -> dict[str, dict[str, tuple[float, float, float]]]:
    """The variables of the light and the dark scheme, as sRGB in [0, 1]."""
    light, dark = re.findall(r":root\s*\{(.*?)\}", css, re.DOTALL)
    found = {}
    for scheme, text in (("light", light), ("dark", dark)):
        pairs = re.findall(r"--([a-z-]+):\s*#([0-9a-f]{6})", text)
        found[scheme] = {name: tuple(int(value[i : i + 2], 16) / 255 for i in (0, 2, 4)) for name, value in pairs}
    return found


def contrast(one, other) -> float:
    """WCAG 2's contrast ratio of two colours, 1 to 21."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)

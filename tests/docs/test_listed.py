"""The page of all boards: every number of it stands on the page of the site that it names."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.docs.blocks import DOCS

_spec = importlib.util.spec_from_file_location("listed", DOCS / "listed.py")
assert _spec is not None
assert _spec.loader is not None
listed = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(listed)


def places(page):
    """Lines of tables, and paragraphs."""
    text = (DOCS / page).read_text()
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("|"):
            yield from paragraph.splitlines()
        else:
            yield " ".join(paragraph.split())


def numbers(text):
    return {float(one.replace(",", "")) for one in re.findall(r"\d[\d,]*(?:\.\d+)?", text)}


def stands(row):
    """Whether one line or paragraph of the row's page has its words and all of its numbers."""
    words, wanted = row.get("cite", row.get("name")), {float(row[name]) for name in listed.NUMBERS if name in row}
    return any(words in place and wanted <= numbers(place) for place in places(row["page"].partition("#")[0]))


@pytest.mark.parametrize("row", listed.documented(), ids=lambda row: f"{row['title']}: {row['name']}")
def test_numbers_are_those_of_the_page(row):
    published = {name: row[name] for name in row if name.startswith("published")}
    beside = {name: row[name] for name in row if name not in published}  # a line of a table has either
    parts = [row] if stands(row) else [beside, {"page": row["page"], "name": "", **published}]
    parts += [{"page": row["page"], **row["elsewhere"]}] if "elsewhere" in row else []
    assert all(map(stands, parts))


def test_a_number_from_nowhere_is_seen():
    row = next(row for row in listed.documented() if row["name"] == "IBP")
    assert stands(row)
    assert not stands(row | {"certified": 60.64})


def test_the_page_links_what_the_site_has():
    html = listed.all_boards()
    assert html.count("<tr ") == len(listed.documented())
    for address in set(re.findall(r'href="([\w.-]+)\.html', html)):
        assert (DOCS / f"{address}.md").exists(), address

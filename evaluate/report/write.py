"""The report's three files."""

from __future__ import annotations

from pathlib import Path

from evaluate.report.data import read_report
from evaluate.report.markdown import markdown
from evaluate.report.page import page
from robustpatch.storage.store import Store


def write_report(run: str | Path | Store, output: str | Path | Store | None = None) -> str:
    """Write report.html, report.md and report.json of a run's folder into `output`, the run's folder if not given;
    what to call the page. Equal records give equal files but for the times. Raises `InvalidInput`.
    """
    report = read_report(run)
    store = Store.of(run if output is None else output)
    for name, text in (("html", page(report)), ("md", markdown(report)), ("json", report.as_json())):
        store.write(f"report.{name}", text.encode())
    return store.path("report.html")

"""A session of the court: the trials of the docket, their files and the page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from evaluate.audit.reproducer import clear, save
from evaluate.court.docket import DOCKET
from evaluate.court.drawing import drawn
from evaluate.court.entry import Entry
from evaluate.court.page import Case, as_dict, html, markdown, shown
from evaluate.court.trial import try_form
from robustpatch.cli import shared
from robustpatch.storage.store import Store

FILES = ("court.md", "court.html", "court.json")


def chosen(only: str | None) -> tuple[Entry, ...]:
    """The entries of the modules that --only names, or all. Raises `InvalidInput`."""
    known = {entry.module: entry for entry in DOCKET}
    return tuple(known[name] for name in shared.chosen(only, list(known), "the docket"))


def hear(
    entries: Sequence[Entry],
    store: Store,
    seconds: float | None = None,
    budget: int = 5_000,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Case]:
    """Try each form of each entry within so many seconds, and write files and pages after each entry."""
    clear(store)
    cases: list[Case] = []
    for entry in entries:
        trials = tuple(
            try_form(entry, form, seconds, budget, seed, lambda what, own=entry: on_progress(f"{own.title}: {what}"))
            for form, _ in entry.forms
        )
        drawing, files = None, []
        for trial in trials:
            finding = shown(trial)
            if finding is None:
                continue
            named = replace(finding, note={**finding.note, "factory": entry.named(trial.form)})
            saved = save(named, store, len(cases), f"{entry.module}-{trial.form}")
            assert saved.path is not None
            files.append(saved.path)
            drawing = drawing or drawn(dict(entry.forms)[trial.form], finding)
        cases.append(Case(entry, trials, drawing, tuple(files)))
        store.write("court.md", markdown(cases).encode())
        store.write("court.html", html(cases).encode())
        store.write("court.json", json.dumps([as_dict(case) for case in cases], indent=1).encode())
    return cases

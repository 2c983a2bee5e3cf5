"""The documented numbers of boards.toml as rows of the page all-boards.html."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from evaluate.leaderboard.page import Listed, page
from evaluate.results.metrics import Share

DATA = Path(__file__).with_name("boards.toml")
NUMBERS = (  # those of a row that its page shows
    *("clean", "certified", "attacked", "of_these", "false_alerts"),
    *("published_clean", "published_certified", "predict", "certify", "minutes"),
)


def documented() -> list[dict[str, Any]]:
    """The rows, each with what its board says of all of them."""
    boards = tomllib.loads(DATA.read_text(encoding="utf-8"))["board"]
    return [{**{k: v for k, v in board.items() if k != "row"}, **row} for board in boards for row in board["row"]]


def all_boards() -> str:
    """The page."""
    return page([listed(row) for row in documented()], "All boards: the documented numbers")


def listed(row: dict[str, Any]) -> Listed:
    """One row of the page."""
    found = row | row.get("elsewhere", {})

    def share(name: str, of: str) -> Share | None:
        return Share(round(found[name] * found[of] / 100), found[of]) if name in found else None

    clean = share("clean", "images")
    assert clean is not None
    task = "detection" if "false_alerts" in found else "recovery" if "certified" in found else "none"
    verdict = "no certificate" if task == "none" else "held" if "attacked" in found else "not attacked"
    address, hash_, anchor = found["page"].partition("#")
    return Listed(
        board=found["title"],
        name=found["name"],
        dataset=found["dataset"],
        patch=found["patch"],
        task=task,
        clean=clean,
        verdict=found.get("verdict", verdict),
        command=found["command"].format(name=found["name"]),
        certified=share("certified", "images"),
        false_alerts=share("false_alerts", "images"),
        attacked=share("attacked", "attacked_images"),
        certified_of_attacked=share("of_these", "attacked_images"),
        attacks=found.get("attacks") if "attacked" in found else None,
        published=(found.get("published_clean"), found.get("published_certified")),
        predict=found.get("predict"),
        certify=found.get("certify"),
        train_seconds=60 * found["minutes"] if "minutes" in found else None,
        links={"how it was measured": address.removesuffix(".md") + ".html" + hash_ + anchor},
    )

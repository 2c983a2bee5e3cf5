"""Pages of Markdown, their blocks of code, and what it prints when they run."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from attacks.registry import KNOWN
from robustpatch.ablations.parse import READERS
from robustpatch.threats.parse import SHAPES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_OURS = ("make ", "python ", "robustpatch ", "torchrun ")
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", flags=re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A block of a page: its language, text and line; `printed`: the text block right after it, if there is one."""

    language: str
    text: str
    line: int
    printed: str | None


def pages() -> list[str]:
    """README and the pages of the site that are written by hand, as paths from the root."""
    found = sorted(DOCS.rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(path.relative_to(ROOT).as_posix() for path in found)]


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    made = []
    for one, following in zip_longest(found, found[1:]):
        shown = following is not None and following[1] == "text" and not text[one.end() : following.start()].strip()
        made.append(Block(one[1], one[2], text.count("\n", 0, one.start()) + 1, following[2] if shown else None))
    return made


def run_python(page: str) -> None:
    """Run the Python blocks of a page in order, in one namespace and the present folder; what a block prints is what
    the page says that it prints. Shapes, ablations and attacks that a page registers are gone afterwards."""
    names = {"__name__": "__main__"}  # dataclasses look up their module
    with _registries():
        for block in blocks(page):
            if block.language != "python":
                continue
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(compile("\n" * block.line + block.text, page, "exec", dont_inherit=True), names)
            if block.printed is not None:
                assert printed.getvalue().strip() == block.printed.strip(), f"{page}:{block.line}"


@contextmanager
def _registries() -> Iterator[None]:
    readers, shapes, known = list(READERS), list(SHAPES), dict(KNOWN)
    try:
        yield
    finally:
        READERS[:], SHAPES[:] = readers, shapes
        KNOWN.clear()
        KNOWN.update(known)


def commands(page: str) -> list[list[str]]:
    """The command lines of a page as words, without comments: all of blocks of bash, and of blocks without a language,
    which may be what is printed, those that call one of ours.
    """
    found = []
    for block in blocks(page):
        if block.language in ("", "bash"):
            lines = block.text.replace("\\\n", " ").splitlines()
            lines = [line for line in lines if block.language or line.startswith(_OURS)]
            found += [words for line in lines if (words := shlex.split(line, comments=True))]
    return found

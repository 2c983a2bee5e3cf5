"""Pages of the site that are made from the code: API and command references, changelog, notebooks."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import jupytext
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from evaluate.cli.program import COMMANDS, app

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))  # MkDocs loads this file by itself

from listed import all_boards  # noqa: E402

# page -> what is public there: a package's own `__all__`, then single names of modules that have none
REFERENCE: dict[str, tuple[str, ...]] = {
    "robustpatch": (
        "robustpatch.checkpoints.load_checkpoint",
        "robustpatch.checkpoints.save_checkpoint",
        "robustpatch.checkpoints.names",
    ),
    "robustpatch.threats": (),
    "robustpatch.data": (),
    "robustpatch.defenses": (
        "robustpatch.defenses.patchcleanser.DoubleMasking",
        "robustpatch.defenses.patchcleanser.PatchCleanser",
        "robustpatch.defenses.patchguard.PatchGuard",
        "robustpatch.defenses.ibp.IBP",
        "robustpatch.defenses.ibp.BoundedClassifier",
        "robustpatch.defenses.local_gradient_smoothing.LocalGradientSmoothing",
        "robustpatch.defenses.watermarking.Watermarking",
    ),
    "robustpatch.voting": (
        "robustpatch.voting.parse.parse_voting",
        "robustpatch.voting.rules.Voting",
        "robustpatch.voting.scored.SummedScores",
        "robustpatch.voting.scored.ClippedTanh",
        "robustpatch.voting.scored.ClippedLogits",
        "robustpatch.voting.scored.SigmoidThreshold",
        "robustpatch.voting.votes.Scored",
    ),
    "robustpatch.networks": (),
    "robustpatch.proof": (),
    "attacks": (),
    "attacks.surfaces": (),
    "evaluate": (
        "evaluate.runs.records.read_records",
        "evaluate.runs.records.Record",
        "evaluate.runs.records.AttackRecord",
    ),
    "evaluate.plots": (),
    "evaluate.audit": (),
    "evaluate.report": (),
    "evaluate.sweep": (),
    "evaluate.leaderboard": (),
}


def public(package: str) -> list[str]:
    """The full names that a page of the reference describes."""
    module = import_module(package)
    own = [name for name in getattr(module, "__all__", ()) if not hasattr(getattr(module, name), "__path__")]
    described = [name for name in own if type(getattr(module, name)).__name__ != "module"]
    return [*(f"{package}.{name}" for name in described), *REFERENCE[package]]


def reference(package: str) -> str:
    """A page of the reference, for mkdocstrings."""
    about = (import_module(package).__doc__ or "").strip()
    return "\n\n".join([f"# `{package}`", about, *(f"::: {name}" for name in public(package))])


def contents() -> str:
    """The list of all pages of the reference."""
    lines = ["# Reference", "Made from the code: every public name, and every option of every command.", ""]
    lines.append("- [Commands](commands.md): the program `robustpatch`")
    for package in REFERENCE:
        about = (import_module(package).__doc__ or "").strip().splitlines()[0]
        lines.append(f"- [`{package}`]({package}.md): {about}")
    return "\n".join(lines)


def commands() -> str:
    """Every command of the program with its options, as typer documents them."""
    program = typer.main.get_command(app)
    context = typer.Context(program, info_name="robustpatch")
    text = get_docs_for_click(obj=program, ctx=context, name="robustpatch").partition("**Commands**")[0]
    each = [typer.main.get_command(import_module(module).app) for module in COMMANDS.values()]
    parts = [
        get_docs_for_click(obj=one, ctx=context, indent=1, name=f"robustpatch {name}")
        for name, one in zip(COMMANDS, each, strict=True)
    ]
    return "\n\n".join(["# Commands", text.partition("\n")[2], *parts])


def adopted(name: str) -> str:
    """A page of the repository, its links to pages of the site made to work there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", "](", text)


def inside(text: str, folder: Path) -> str:
    """The text of a page in `folder` of docs/ with links to files of the repository beside docs/ as plain text."""
    docs = ROOT / "docs"

    def kept(link: re.Match[str]) -> str:
        target = link[2].partition("#")[0]
        there = (docs / folder / target).resolve()
        return link[0] if "://" in target or not target or docs in (there, *there.parents) else link[1]

    return re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", kept, text)


def notebook(path: Path) -> str:
    """A tutorial as a notebook of Jupyter."""
    return jupytext.writes(jupytext.read(path), fmt="ipynb")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Called by MkDocs: a page beside docs/index.md that mkdocs.yml does not list yet comes last among the guides."""
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    new = [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f" {path.name}\n" not in listed]
    next(part["Guides"] for part in config.nav or [] if "Guides" in part).extend(new)
    return config


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Called by MkDocs."""
    return inside(markdown, Path(page.file.src_uri).parent)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs: adds the pages."""
    made: dict[str, Any] = {f"reference/{package}.md": reference(package) for package in REFERENCE}
    made |= {"reference/index.md": contents(), "reference/commands.md": commands()}
    made |= {"changelog.md": adopted("CHANGELOG.md"), "contributing.md": adopted("CONTRIBUTING.md")}
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
        if path.name != "index.md":
            made[f"tutorials/{path.stem}.ipynb"] = notebook(path)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    files.append(File.generated(config, "all-boards.html", content=all_boards()))
    return files

"""A run's configuration in words: its title, its budgets, the assumption of its certificates."""

from __future__ import annotations

import ast
import shlex
from typing import Any

from evaluate.results.metrics import Summary
from robustpatch.cli.text import counted

_SCORE = "the score of an ablation which the patch does not touch"
_LOGIT = "what the network says of an image in which the patch does not show"


def title_of(configuration: dict[str, Any], images: int) -> str:
    """Images, patch, and the classifier as far as the run names it."""
    title = f"{counted(images, configuration['dataset'] + ' test image')}, {configuration['threat']} patch"
    title += f", top {configuration['top_k']}" if configuration.get("top_k", 1) > 1 else ""
    model = configuration.get("checkpoint") or configuration.get("model")
    if model is None:
        return title
    defense = configuration.get("defense")
    if configuration.get("ablation") is None:
        kind = defense or ("undefended" if "checkpoint" in configuration else None)
        return f"{title}, {model}" + (f" ({kind})" if kind else "")
    kind = f"{configuration['ablation']}, {configuration['voting']}"
    if "sampling" in configuration:
        kind += f", {configuration['sampling']['estimation']:,} samples"
    return f"{title}, {model} ({defense} around {kind})" if defense else f"{title}, {model} ({kind})"


def assumption(
    summary: Summary,
    configuration: dict[str, Any],
    deviation: float | None,
    guards: list[float],
    float32_deviation: float | None = None,
) -> str:
    """The assumption of the certificates. `guards`: those of single certificates, where the configuration has none.
    `deviation`: between evaluations; `float32_deviation`: from float32, where less was computed in.
    """
    if summary.certified_exact is None and summary.certified_images == 0:
        return "This classifier has no certificates, so nothing is assumed of it and nothing promised."
    guard = configuration.get("guard")
    guard = max(guards, default=None) if guard is None else guard
    if guard is None:
        text = "The run does not say within which guard its certificates hold."
    else:
        text = (
            f"Certificates assume that {_SCORE if configuration.get('ablation') else _LOGIT} moves by no more than "
            f"the guard, {guard:g}, between two evaluations"
        )
        text += f" (largest deviation measured: {deviation:.1e})." if deviation is not None else "."
        if float32_deviation is not None:
            text += (
                " It computed in less than float32, held against float32 on images of each batch (largest deviation: "
                f"{float32_deviation:.1e})."
            )
    if summary.votes:
        text += (
            f" {summary.close_votes:,} of {summary.votes:,} votes lay that close to turning over; each counts against "
            "its certificate."
        )
    random = summary.allowance
    if random is None:
        return f"{text} The proof leaves nothing to chance (confidence 100%)."
    return (
        f"{text} Each holds with a confidence of {100 * random.confidence:g}%, over the samples drawn for its image: "
        f"of {random.images} images, up to {random.most} changed certified predictions would be chance."
    )


def budgets(configuration: dict[str, Any]) -> list[int | None]:
    """The evaluations an image that each attack was given, as its repr says; None where it names no number."""
    return [_budget(text) for text in configuration.get("attacks", [])]


def _budget(text: str) -> int | None:
    try:
        call = ast.parse(text, mode="eval").body
    except SyntaxError:  # an attack of somebody else's, whose repr is no expression
        return None
    for keyword in call.keywords if isinstance(call, ast.Call) else []:
        if keyword.arg == "attack":  # one around another
            return _budget(ast.unparse(keyword.value))
        if keyword.arg == "budget" and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, int):
            return keyword.value.value
    return None


def command_of(line: str | None) -> str | None:
    """The command as it is typed: a program by its name, a file of this package as `python -m`."""
    if line is None:
        return None
    program, *arguments = shlex.split(line) or [""]
    *folders, name = program.replace("\\", "/").split("/")
    if name.endswith(".py"):
        names = [*folders, name.removesuffix(".py")]
        names = names[:-1] if names[-1] == "__main__" else names
        start = next((-n for n in (3, 2) if names[-n:][0] in ("robustpatch", "evaluate")), -2)
        return shlex.join(["python", "-m", ".".join(names[start:]), *arguments])
    return shlex.join([name, *arguments])

"""python -m evaluate.attack_vs_cert: certify, attack, and hold the two against each other."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from attacks import parse_attacks
from attacks.base import predict, referee
from attacks.registry import names
from evaluate.batch import Settings
from evaluate.command import BROKEN, HELD, check_dtype, check_fit, check_number, circumstances, progress_bar, status_of
from evaluate.counterexample import load_counterexample, replay
from evaluate.metrics import summarise
from evaluate.models import as_in_run, described, load_model, voters
from evaluate.runner import evaluate
from evaluate.table import summary_table
from robustpatch.checks import calibrate_guard
from robustpatch.data import load_images
from robustpatch.errors import InvalidInput
from robustpatch.precision import check_device
from robustpatch.randomized import RandomizedClassifier
from robustpatch.threat import parse_threat
from robustpatch.zoo import load_checkpoint

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dataset: Annotated[
        str, typer.Option(help="mnist-sample (in the package), mnist, cifar10 or folder.")
    ] = "mnist-sample",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data; default $ROBUSTPATCH_DATA.")] = None,
    checkpoint: Annotated[str, typer.Option(help="A shipped checkpoint's name, or a file.")] = "mnist-columns2",
    ablation: Annotated[
        str | None, typer.Option(help="Refuse a checkpoint for another: columns:2, rows:3, blocks:8, sparse:5.")
    ] = None,
    theta: Annotated[float | None, typer.Option(help="Vote threshold instead of the checkpoint's.")] = None,
    guard: Annotated[float | None, typer.Option(help="Allowed change of a score; default by precision.")] = None,
    randomized: Annotated[
        bool, typer.Option("--randomized", help="Sample the ablations instead of enumerating them: top-1 votes.")
    ] = False,
    alpha: Annotated[
        float | None, typer.Option(help="Chance of a randomized certificate to be wrong. Default 0.05.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Samples behind a randomized certificate, a tenth more to choose. Default 10,000."),
    ] = None,
    patch: Annotated[str, typer.Option(help="5x5, 2x10, 2%, 2*5x5 (two patches); 2x10,10x2 (either).")] = "5x5",
    attacks: Annotated[
        str,
        typer.Option(
            help=f"Comma-separated: {names()}; or none. "
            "standard is the worst case over an ensemble, quick a smaller one."
        ),
    ] = "standard",
    steps: Annotated[int | None, typer.Option(help="Gradient steps of a climb instead of each attack's own.")] = None,
    budget: Annotated[
        int | None, typer.Option(help="Evaluations an image and attack; default: each attack's own.")
    ] = None,
    certified_budget: Annotated[int, typer.Option(help="The same on certified images, unpruned; 0: no limit.")] = 5_000,
    num_images: Annotated[int, typer.Option(help="Test images, from the first on.")] = 200,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Images certified and attacked together.")] = 50,
    seed: int = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the records; a run killed is resumed from it. Default: runs/NAME.")
    ] = None,
    replay_file: Annotated[Path | None, typer.Option("--replay", help="Show a saved counterexample again.")] = None,
) -> None:
    """Report certified beside empirical accuracy, and whether any attack changed a certified prediction.

    Exit status 0: no certificate was broken; the verdict says whether there was one and all were tested. 1: a certified
    prediction was changed; of certificates that hold with a confidence, significantly more than it allows (p < 0.001).
    2: wrong call. 3: internal error.
    """
    if replay_file is not None:
        raise typer.Exit(status_of(lambda _: _replay(replay_file, device)))
    status = status_of(
        lambda errors: _run(
            dataset,
            data_root,
            checkpoint,
            ablation,
            theta,
            guard,
            randomized,
            alpha,
            samples,
            patch,
            attacks,
            steps,
            budget,
            certified_budget,
            num_images,
            device,
            dtype,
            batch_size,
            seed,
            output,
            errors,
        )
    )
    raise typer.Exit(status)


def _run(
    dataset: str,
    data_root: Path | None,
    checkpoint: str,
    ablation: str | None,
    theta: float | None,
    guard: float | None,
    randomized: bool,
    alpha: float | None,
    samples: int | None,
    patch: str,
    attacks: str,
    steps: int | None,
    budget: int | None,
    certified_budget: int,
    num_images: int,
    device: str,
    dtype: str,
    batch_size: int,
    seed: int,
    output: Path | None,
    errors: Console,
) -> int:
    started = time.monotonic()
    if certified_budget < 0:
        raise InvalidInput(f"certified_budget is {certified_budget}; give evaluations, or 0 for no limit")
    settings = Settings(num_images, batch_size, certified_budget or None, seed, check_device(device))
    around = circumstances(settings.device)
    loaded = load_model(
        checkpoint,
        ablation=ablation,
        theta=theta,
        guard=guard,
        randomized=randomized,
        alpha=alpha,
        samples=samples,
        seed=seed,
        device=settings.device,
        dtype=dtype,
    )
    images = load_images(dataset, data_root)
    check_fit(checkpoint, loaded, images)
    check_number(num_images, images)
    threat = parse_threat(patch, images.image_shape[1:])
    chosen = parse_attacks(attacks, steps=steps, budget=budget)
    model = loaded.model
    smoothed = voters(model)
    configuration: dict[str, Any] = {"checkpoint": checkpoint, "checkpoint_sha256": loaded.sha256, **described(model)}
    configuration |= {"dtype": dtype, "budget": budget}
    if output is None:
        what = json.dumps([dataset, configuration, str(threat), repr(chosen), vars(settings)])
        output = Path("runs") / f"{Path(checkpoint).stem}-{dataset}-{sha256(what.encode()).hexdigest()[:8]}"
    x, _ = images.batch(range(min(8, num_images)))
    deviation = None if smoothed is None else calibrate_guard(smoothed, x.to(settings.device))
    progress = progress_bar(errors)
    task = progress.add_task("", total=num_images)
    with ExitStack() as shown:

        def on_progress(finished: int, what: str) -> None:
            if not progress.live.is_started:  # not before the call is found right: an error stands alone
                shown.enter_context(progress)
            progress.update(task, completed=finished, description=what)

        records = evaluate(
            model, images, threat, chosen, settings, output, configuration=configuration, on_progress=on_progress
        )
    summary = summarise(records)
    seconds = time.monotonic() - started
    (output / "summary.json").write_text(
        json.dumps(
            {
                **summary.as_dict(),
                "measured_deviation": deviation,
                "seconds": seconds,
                "configuration": json.loads((output / "run.json").read_text()),
                **around,
            },
            indent=1,
        )
    )
    kind = "undefended" if smoothed is None else f"{configuration['ablation']}, {smoothed.voting}"
    if isinstance(model, RandomizedClassifier):
        kind += f", {model.sampling.estimation:,} samples"
    title = f"{len(records)} {dataset} test images, {threat} patch, {checkpoint} ({kind})"
    console = Console()
    guard = None if smoothed is None else smoothed.guard
    console.print(summary_table(summary, title=title, guard=guard, deviation=deviation, seconds=seconds))
    console.print(f"records and summary.json in {output}", highlight=False, soft_wrap=True, markup=False)
    if summary.verdict != "broken":
        return HELD
    for path in sorted((output / "counterexamples").glob("*.safetensors")):
        console.print(
            f"see it again: python -m evaluate.attack_vs_cert --replay {path}", highlight=False, soft_wrap=True
        )
    return BROKEN


def _replay(path: Path, device: str) -> int:
    """Show a counterexample again with the checkpoint it came from; 1 when it still stands."""
    example = load_counterexample(path)
    claim = example.configuration
    if "checkpoint" not in claim:
        raise InvalidInput(f"replay is {path}, found with a model of Python's own; use evaluate.counterexample.replay")
    loaded = load_checkpoint(claim["checkpoint"])
    if loaded.sha256 != claim["checkpoint_sha256"]:
        raise InvalidInput(f"checkpoint {claim['checkpoint']} has changed since {path} was saved; restore that file")
    model = as_in_run(loaded, claim).to(check_device(device), check_dtype(claim["dtype"]))
    votes = voters(model)
    assert votes is not None
    outcome, certified = replay(example, model)
    console = Console()
    console.print(f"image {example.index}, {example.threat} patch at {example.corners.tolist()}, by {example.attack}")
    for name, image in (("clean", example.x), ("attacked", example.x_adv)):
        image = image[None].to(device)
        counts = votes.votes(image).cast[0].sum(dim=0).tolist()
        console.print(f"votes {name}: {counts}, prediction {int(predict(referee(model), image))}")
    stands = certified and bool(outcome.broken[0])
    console.print(
        f"certified: {certified}; inside the threat: {bool(outcome.contained[0] and outcome.in_range[0])}; "
        f"prediction changed: {bool(outcome.broken[0])}"
    )
    if isinstance(model, RandomizedClassifier):
        console.print(
            f"a certificate may be wrong with a chance of {model.sampling.alpha:g}: the run counts such cases"
        )
    console.print("the counterexample stands" if stands else "the counterexample does not stand here")
    return BROKEN if stands else HELD


if __name__ == "__main__":
    app()

"""python -m evaluate.attack_vs_cert: certify, attack, and hold the two against each other."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from hashlib import sha256

import typer
from rich.console import Console

from attacks import parse_attacks
from evaluate.cli.command import BROKEN, HELD, RayCommand, check_number, circumstances, showing
from evaluate.cli.options import Options
from evaluate.model.identity import identity_of
from evaluate.model.load import subject_of
from evaluate.model.own import images_of, source_of
from evaluate.report import write_report
from evaluate.results.metrics import summarise
from evaluate.results.report_columns import summary_table
from evaluate.results.sentences import verdict
from evaluate.runs.batch import Settings
from evaluate.runs.cluster import Cluster
from evaluate.runs.estimate import Estimate, at_most, estimate
from evaluate.runs.output import place_of
from evaluate.runs.records import read_deviation, read_workers
from evaluate.runs.replay import replay_command, show_again
from evaluate.runs.runner import evaluate
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.calibration import calibrate_guard
from robustpatch.classifiers.smoothed import guarded_classifier
from robustpatch.cli.arguments import takes
from robustpatch.cli.command_line import refused
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.import_by_name import named_object
from robustpatch.cli.own_ablation import own_ablation
from robustpatch.errors import InvalidInput
from robustpatch.precision import check_device
from robustpatch.storage.toml import as_toml
from robustpatch.threats.growing import growing_text
from robustpatch.threats.parse import parse_threat
from robustpatch.threats.within_masks import bound

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(cls=RayCommand)
@takes
def main(options: Options, errors: Console) -> int:
    """Report certified beside empirical accuracy, and whether any attack changed a certified prediction.

    Exit status 0: no certificate was broken; the verdict says whether there was one and all were tested. 1: a certified
    prediction was changed; of certificates that hold with a confidence, significantly more than it allows (p < 0.001).
    2: wrong call. 3: internal error.
    """
    return carry_out(options, errors)


def carry_out(options: Options, errors: Console) -> int:
    """Do what the options ask for; see `main`. Raises `InvalidInput`."""
    started, given = time.monotonic(), options.given()
    options = replace(options, ablation=own_ablation(options.ablation))
    console = TextConsole(no_color=True) if options.plain else TextConsole()
    if options.replay is not None:
        return show_again(options.replay, options, console)
    cluster = Cluster.of(options.ray, options.num_workers, options.device, lambda text: _say(errors, text))
    device = check_device(options.device if cluster is None else "cpu")
    around = circumstances(device)
    source = source_of(options)
    images = images_of(options, source)
    subject = subject_of(options, images, device, source)
    notes = [*subject.notes, *images.notes]
    count = min(200, len(images)) if options.num_images is None else options.num_images or len(images)
    check_number(count, images)
    settings = Settings(
        count,
        options.batch_size,
        options.certified_budget or None,
        options.seed,
        options.device,
        options.gallery,
        options.top_k,
        growing_text(options.growing),
    )
    threat = bound(parse_threat(options.patch, images.image_shape[1:]), images, count)
    chosen = parse_attacks(
        options.attacks, steps=options.steps, budget=options.budget, own=lambda name: named_object(name, "attacks")
    )
    model, classifier = subject.model, as_classifier(subject.model)
    configuration = {**subject.note, "dtype": options.dtype, "budget": options.budget}
    with showing(errors, count, plain=options.plain, quiet=options.quiet, notes=notes) as on_progress:
        if options.dry_run:
            settings = replace(settings, device=device)
            found = estimate(model, images, threat, chosen, settings, on_progress=on_progress)
            console.print(_expected(found), soft_wrap=True)
            return HELD
        if options.output is None:
            identity = identity_of(model, chosen, module=subject.module)
            what = json.dumps([options.dataset, configuration, identity, str(threat), repr(chosen), vars(settings)])
            output = f"runs/{subject.stem}-{options.dataset}-{sha256(what.encode()).hexdigest()[:8]}"
        else:
            output = options.output
        if not options.quiet and cluster is None:
            notes += _long(at_most(model, images, chosen, replace(settings, device=device)), options)
        store, smoothed, deviation = place_of(output), guarded_classifier(classifier), None
        if smoothed is not None and cluster is None:  # the workers of a cluster measure where they are
            deviation = calibrate_guard(smoothed, images.batch(range(min(8, count)))[0].to(device))
        redone: dict[str, str] = {}

        def on_damaged(shard: str, reason: str) -> None:
            redone[shard] = reason
            _say(errors, f"shard {store.path(shard)} is damaged ({reason}): its images are done again")

        records = evaluate(
            model,
            images,
            threat,
            chosen,
            settings,
            store,
            configuration=configuration,
            module=subject.module,
            on_progress=on_progress,
            on_damaged=on_damaged,
            on_note=notes.append,
            workers=cluster,
        )
    summary = summarise(records)
    if cluster is not None:  # of all workers that have made a part of the run, today or before
        made = read_workers(store)
        deviation = max((one["deviation"] for one in made if one["deviation"] is not None), default=None)
        machines = [{key: value for key, value in one.items() if key != "deviation"} for one in made]
        around["workers"] = [one for number, one in enumerate(machines) if one not in machines[:number]]
    seconds, off = time.monotonic() - started, read_deviation(store)
    store.write("run.toml", as_toml({**given, "output": output}).encode())
    content = {
        **summary.as_dict(),
        "measured_deviation": deviation,
        "float32_deviation": off,
        "seconds": seconds,
        "redone": redone,
        "configuration": json.loads(store.read("run.json")),
        **around,
    }
    store.write("summary.json", json.dumps(content, indent=1).encode())
    if options.quiet:
        console.print(verdict(summary, settings.top_k), soft_wrap=True)
    else:
        asked = f"{threat} patch" if options.top_k == 1 else f"{threat} patch, top {options.top_k}"
        title = f"{len(records)} {options.dataset} test images, {asked}, {subject.name} ({classifier.in_words()})"
        guard = classifier.guard
        measured = {"deviation": deviation, "float32_deviation": off, "top_k": options.top_k}
        console.print(summary_table(summary, title=title, guard=guard, **measured, seconds=seconds))
        _say(console, f"records, summary.json and run.toml (to repeat: --config) in {output}")
    broken = summary.verdict == "broken"
    try:
        address = write_report(store)
        if not options.quiet:
            _say(console, f"report in {address}")
    except Exception as error:  # a report that fails must not hide the verdict
        if not broken:
            raise
        refused(error) if isinstance(error, InvalidInput) else errors.print_exception()
    if not broken:
        return HELD
    for name in store.names("counterexamples", ".safetensors"):
        _say(console, f"see it again: {replay_command(store.path(name), configuration)}")
    return BROKEN


def _long(seconds: float, options: Options) -> list[str]:
    """What is said before a run that may take long."""
    if seconds < 900:
        return []
    shorter = "--dry-run estimates more closely; --attacks quick, --budget or --num-images make it shorter"
    shorter = shorter.replace("--attacks quick, ", "") if options.attacks != "standard" else shorter
    return [f"this may take up to about {seconds / 60:,.0f} minutes: {shorter}"]


def _expected(found: Estimate) -> str:
    minutes = "less than a minute" if found.seconds < 60 else f"about {found.seconds / 60:,.0f} minutes"
    source = f"{found.attacked} images attacked" if found.attacked else "the attacks' budgets"
    shares = "measuring more would take more than a tenth of that"
    if found.certified is not None and found.open is not None:
        shares = f"about {found.certified:.0%} certified, {found.open:.0%} correct but not certified"
    return (
        f"{found.images} images: {minutes} ({found.certifying:,.0f} s to certify, {found.attacking:,.0f} s to "
        f"attack) and {found.evaluations:,} evaluations, from {source}; {shares}. Nothing was written."
    )


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


if __name__ == "__main__":
    app()

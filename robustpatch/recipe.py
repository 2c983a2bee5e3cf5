"""python -m robustpatch.recipe: train every network of a recipe, a TOML file, and keep each as one small checkpoint.

A recipe has a table `[[run]]` for each network: its `name`, and the settings of `TrainingConfig`. `stages`, a list of
tables, trains it in several stages, each from the weights of the one before; a stage's settings go over the run's, and
a run's over those of the table `[defaults]`. The ablation "none" is that of whole images. `vote` is the voting rule
that the checkpoint is kept with, where another than the training's did best on validation images; `start`, a checkpoint
whose weights the first stage begins with; `bits`, to how many binary digits after the first its weights are rounded,
where they are to compress well.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from robustpatch.ablations.parse import parse_source
from robustpatch.checkpoints import load_checkpoint, save_checkpoint
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.status import HELD, status_of
from robustpatch.cli.text import LONGEST_SLUG, one_line, slug
from robustpatch.data.image_set import ImageSet
from robustpatch.errors import InvalidInput
from robustpatch.networks import usual_name
from robustpatch.precision import check_device
from robustpatch.storage.store import local_folder
from robustpatch.storage.toml import read_toml
from robustpatch.train import Channels, Classes, ImageSize, MeasureEvery, MeasureImages, SkipBroken, read_images, shown
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import about, distributed, state, train
from robustpatch.voting.parse import parse_voting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class TrainingRun:
    """One network of a recipe: its checkpoint's name, its stages, each but the first from the one before, the voting
    rule that it is kept with (None: that of the last stage), what the first begins with (None: new weights), and the
    digits that its weights keep (None: as float16 has).
    """

    name: str
    stages: tuple[TrainingConfig, ...]
    vote: str | None = None
    start: str | None = None
    bits: int | None = None


def load_recipe(path: str | Path) -> list[TrainingRun]:
    """The runs of a recipe. Raises `InvalidInput` for a file that cannot be read, unknown settings and wrong values."""
    try:
        recipe = read_toml(path)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"recipe is {path}, which cannot be read as TOML ({one_line(error, 200)})") from error
    defaults, tables = recipe.get("defaults", {}), recipe.get("run", [])
    if not isinstance(defaults, dict) or not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise InvalidInput(f"recipe is {path}, whose tables are others; write [defaults], and [[run]] for each network")
    runs = [_run(path, defaults, run) for run in tables]
    if not runs or recipe.keys() - {"defaults", "run"}:
        raise InvalidInput(
            f"recipe is {path}, with tables {', '.join(recipe)}; [[run]] and [defaults] are what it takes"
        )
    if len({run.name for run in runs}) < len(runs):
        raise InvalidInput(f"recipe is {path}, where two runs share a name; their checkpoints would be one file")
    return runs


def _run(path: str | Path, defaults: dict[str, Any], run: dict[str, Any]) -> TrainingRun:
    settings = {**defaults, **run}
    name, stages, vote = settings.pop("name", None), settings.pop("stages", [{}]), settings.pop("vote", None)
    start, bits = settings.pop("start", None), settings.pop("bits", None)
    if not isinstance(name, str) or slug(name) != name:
        raise InvalidInput(
            f"recipe {path}: name is {name!r}; each run needs one of letters, digits, '.', '_' and '-', at most "
            f"{LONGEST_SLUG} and no '.' first, which becomes the checkpoint's file"
        )
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise InvalidInput(f"recipe {path}, run {name}: stages is {stages!r}; a list of tables is needed")
    configs = []
    for stage in stages:
        chosen = {**settings, **stage}
        whole = chosen.get("ablation") == "none"  # TOML has no word for it
        if whole:
            del chosen["ablation"]
        known = {own.name: own for own in fields(TrainingConfig)} | {"start": None}
        unknown = sorted(chosen.keys() - known.keys() | chosen.keys() & {"start"})
        if unknown:
            raise InvalidInput(
                f"recipe {path}, run {name}: {', '.join(unknown)} is no setting here; those are "
                f"{', '.join(key for key in known if key != 'start')}, name, stages, start, vote and bits"
            )
        if isinstance(chosen.get("ablation"), str):
            chosen.setdefault("network", {"name": usual_name(parse_source(chosen["ablation"]))})
        for key, value in chosen.items():
            default = getattr(TrainingConfig(), key)
            kind = (int, float) if isinstance(default, float) else str if default is None else type(default)
            if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
                raise InvalidInput(f"recipe {path}, run {name}: {key} is {value!r}; a value like {default!r} is needed")
        if not isinstance(chosen.get("network", {"name": ""}).get("name"), str):
            raise InvalidInput(f"recipe {path}, run {name}: network is {chosen['network']!r}; its name is needed")
        if whole:
            chosen["ablation"] = None
        configs.append(TrainingConfig(**chosen))
    if not configs:
        raise InvalidInput(f"recipe {path}, run {name}: stages is empty; leave it out for a single one")
    if vote is not None:
        if not isinstance(vote, str):
            raise InvalidInput(f"recipe {path}, run {name}: vote is {vote!r}; a text such as 'threshold:0.3' is needed")
        parse_voting(vote)
    if not isinstance(start, str | None):
        raise InvalidInput(f"recipe {path}, run {name}: start is {start!r}; name a checkpoint, or leave it out")
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 10):
        raise InvalidInput(f"recipe {path}, run {name}: bits is {bits!r}; give 1 to 10, or leave it out")
    return TrainingRun(name, tuple(configs), vote, start, bits)


def follow(
    run: TrainingRun,
    images: ImageSet,
    validation: ImageSet,
    output: str | Path,
    *,
    device: str = "cpu",
    workers: int = 0,
    measure_every: int = 1,
    measure_images: int | None = None,
    progress: Callable[[int, TrainingConfig], AbstractContextManager[dict[str, Any]]] = lambda *_: nullcontext({}),
) -> Path:
    """Train a run and write `output`/NAME.safetensors: weights rounded to float16, all stages and their seconds.

    Stage i is kept in `output`/NAME/i. A run that was interrupted goes on where it was; a checkpoint that is missing or
    damaged is made again of its stages; a finished run is left alone, unless its settings or the data set have changed:
    then it is refused with `InvalidInput`. `measure_every` and `measure_images` are those of `train`;
    `progress(i, config)` gives its callbacks for a stage.
    """
    folder, start = local_folder(output), run.start
    final = folder / f"{run.name}.safetensors"
    claims = json.loads(json.dumps([asdict(config) for config in run.stages]))
    kept = _kept(final, folder / run.name / str(len(run.stages)) / state.STATE)
    distributed.wait()  # until all processes have looked, before one writes
    if kept is not None:
        vote = run.vote or run.stages[-1].for_checkpoint().get("voting")
        if [kept.get(key) for key in ("stages", "voting", "start", "bits")] != [claims, vote, run.start, run.bits]:
            raise InvalidInput(f"output {final} was trained by another recipe; name another output, or delete it")
        if any(kept.get(key) != value for key, value in about(images).items()):
            raise InvalidInput(f"output {final} was trained on other images; name another output, or delete it")
        return final
    history: list[dict[str, Any]] = []
    for number, config in enumerate(run.stages, 1):
        own = folder / run.name / str(number)
        with progress(number, config) as callbacks:
            stage = replace(config, start=start)
            train(
                stage,
                images,
                validation,
                own,
                resume=True,
                device=device,
                workers=workers,
                measure_every=measure_every,
                measure_images=measure_images,
                **callbacks,
            )
        start = str(own / state.CHECKPOINT)
        history += load_checkpoint(start).config["history"]
    assert start is not None
    trained = load_checkpoint(start)
    config = {**trained.config, "start": run.start, "stages": claims, "history": history}
    config |= {} if run.vote is None else {"voting": run.vote}
    config |= {} if run.bits is None else {"bits": run.bits}
    config["train_seconds"] = round(sum(row["seconds"] for row in config["history"]), 1)
    if distributed.rank() == 0:
        save_checkpoint(final, trained.model, config, dtype=torch.float16, bits=run.bits)
    distributed.wait()
    return final


def _kept(final: Path, last: Path) -> dict[str, Any] | None:
    """What the finished run's checkpoint says of it; None where there is none, or where it is damaged and can be made
    again of the `last` stage's state. Raises `InvalidInput` where it cannot.
    """
    if not final.exists():
        return None
    try:
        return load_checkpoint(final).config
    except InvalidInput as error:
        if last.exists():
            return None
        raise InvalidInput(
            f"output {final} cannot be read, and its stages are gone; delete it to train again ({error})"
        ) from error


@app.command(cls=Command)
def main(
    recipe: Annotated[Path, typer.Argument(help="A file of recipes/, or your own.")],
    output: Annotated[str, typer.Option(help="Folder of the checkpoints, NAME.safetensors; resumed from when killed.")],
    dataset: Annotated[str, typer.Option(help="mnist, cifar10 or folder.")] = "mnist",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data; default $ROBUSTPATCH_DATA.")] = None,
    image_size: ImageSize = None,
    channels: Channels = 3,
    classes: Classes = None,
    skip_broken: SkipBroken = False,
    only: Annotated[str | None, typer.Option(help="Names of runs, comma-separated; default: all.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun, cuda is a GPU for each process.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Threads that read and decode the images of the next steps.")] = 0,
    measure_every: MeasureEvery = 1,
    measure_images: MeasureImages = None,
) -> None:
    """Train every network of a recipe; validated on the last 5,000 training images (of a folder, on a tenth of them at
    most), never on test images.
    """

    def follow_all(_: Console) -> int:
        check_device(device)
        runs = load_recipe(recipe)
        wanted = None if only is None else only.split(",")
        unknown = sorted(set(wanted or ()) - {run.name for run in runs})
        if unknown:
            raise InvalidInput(f"only is {', '.join(unknown)}; the recipe has {', '.join(run.name for run in runs)}")
        images, validation = read_images(
            dataset, data_root, image_size=image_size, channels=channels, classes=classes, skip_broken=skip_broken
        )
        with distributed.joined(device) as own:
            shown_on = TextConsole(stderr=True, quiet=distributed.rank() > 0)
            for run in [run for run in runs if wanted is None or run.name in wanted]:

                def progress(
                    number: int, config: TrainingConfig, run: TrainingRun = run
                ) -> AbstractContextManager[dict[str, Any]]:
                    title = f"{run.name}, stage {number} of {len(run.stages)}"
                    return shown(shown_on, len(images) // config.batch_size, title, images.notes)

                path = follow(
                    run,
                    images,
                    validation,
                    output,
                    device=own,
                    workers=workers,
                    measure_every=measure_every,
                    measure_images=measure_images,
                    progress=progress,
                )
                seconds = load_checkpoint(path).config["train_seconds"]
                shown_on.print(f"{path} is there, after {seconds / 60:.0f} minutes of training", soft_wrap=True)
        return HELD

    raise typer.Exit(status_of(follow_all, "interrupted; the finished epochs are kept, and the same command goes on"))


if __name__ == "__main__":
    app()

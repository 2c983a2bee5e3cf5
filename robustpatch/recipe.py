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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import AfterValidator, Field

from robustpatch.checkpoints import checkpoint_bytes, load_checkpoint
from robustpatch.cli import shared
from robustpatch.cli.arguments import takes
from robustpatch.cli.command_line import Command
from robustpatch.cli.consoles import TextConsole
from robustpatch.cli.status import HELD
from robustpatch.cli.text import LONGEST_SLUG, one_line, slug
from robustpatch.data.image_set import ImageSet
from robustpatch.data.images import TrainingData
from robustpatch.errors import InvalidInput
from robustpatch.options import options, read, table_of
from robustpatch.precision import check_device
from robustpatch.storage.store import Store, local_folder
from robustpatch.storage.toml import read_toml
from robustpatch.train import Measured, shown
from robustpatch.training.config import TrainingConfig
from robustpatch.training.loop import about, distributed, state, train
from robustpatch.voting.parse import parse_voting

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _named(name: str) -> str:
    if slug(name) != name:
        raise InvalidInput(
            f"name is {name!r}; each run needs one of letters, digits, '.', '_' and '-', at most {LONGEST_SLUG} and no "
            "'.' first, which becomes the checkpoint's file"
        )
    return name


def _votes(voting: str | None) -> str | None:
    if voting is not None:
        parse_voting(voting)
    return voting


_OF_RUN = ("name", "stages", "vote", "start", "bits")
_TABLES = Annotated[list[dict[str, Any]], Field(min_length=1)]
_RECIPE, _STAGES = table_of({"defaults": dict[str, Any], "run": _TABLES}), table_of({"stages": _TABLES})


@options
class TrainingRun:
    """One network of a recipe: its checkpoint's name, its stages, each but the first from the one before, the voting
    rule that it is kept with (None: that of the last stage), what the first begins with (None: new weights), and the
    digits that its weights keep (None: as float16 has).
    """

    name: Annotated[str, AfterValidator(_named)]
    stages: tuple[TrainingConfig, ...]
    vote: Annotated[str | None, AfterValidator(_votes)] = None
    start: str | None = None
    bits: Annotated[int, Field(ge=1, le=10)] | None = None


def load_recipe(path: str | Path) -> list[TrainingRun]:
    """The runs of a recipe. Raises `InvalidInput` for a file that cannot be read, unknown settings and wrong values."""
    recipe = read(_RECIPE, read_toml(path, "recipe"), f"recipe {path}: ")
    runs = [_run(path, {**recipe.get("defaults", {}), **run}) for run in recipe.get("run", [])]
    if not runs:
        raise InvalidInput(f"recipe is {path}, without a run; write [[run]] for each network")
    if len({run.name for run in runs}) < len(runs):
        raise InvalidInput(f"recipe is {path}, where two runs share a name; their checkpoints would be one file")
    return runs


def _run(path: str | Path, given: dict[str, Any]) -> TrainingRun:
    """The run of a table; what is not its own its stages share."""
    where = f"recipe {path}: [[run]] {one_line(given.get('name'), 100)}"
    own = {"stages": [{}], **{key: given[key] for key in _OF_RUN if key in given}}
    shared = {key: value for key, value in given.items() if key not in _OF_RUN}
    configs = []
    for number, stage in enumerate(read(_STAGES, {"stages": own["stages"]}, f"{where}: ")["stages"]):
        place = f"{where} stages[{number}]: " if "stages" in given else f"{where}: "
        if "start" in stage:
            raise InvalidInput(f"{place}start is no option of a stage, which goes on from the one before; give it once")
        configs.append(read(TrainingConfig, {**shared, **stage}, place))
    return read(TrainingRun, {**own, "stages": tuple(configs)}, f"{where}: ")


def follow(
    run: TrainingRun,
    images: ImageSet,
    validation: ImageSet,
    output: str | Path,
    *,
    progress: Callable[[int, TrainingConfig], AbstractContextManager[dict[str, Any]]] = lambda *_: nullcontext({}),
    **training: Any,
) -> Path:
    """Train a run and write `output`/NAME.safetensors: weights rounded to float16, all stages and their seconds.

    Stage i is kept in `output`/NAME/i. A run that was interrupted goes on where it was; a checkpoint that is missing or
    damaged is made again of its stages; a finished run is left alone, unless its settings or the data set have changed:
    then it is refused with `InvalidInput`. `training` are options of `train`; `progress(i, config)` gives its callbacks
    for a stage.
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
            train(replace(config, start=start), images, validation, own, resume=True, **training, **callbacks)
        start = str(own / state.CHECKPOINT)
        history += load_checkpoint(start).config["history"]
    assert start is not None
    trained = load_checkpoint(start)
    config = {**trained.config, "start": run.start, "stages": claims, "history": history}
    config |= {} if run.vote is None else {"voting": run.vote}
    config |= {} if run.bits is None else {"bits": run.bits}
    config["train_seconds"] = round(sum(row["seconds"] for row in config["history"]), 1)
    if distributed.rank() == 0:
        content = checkpoint_bytes(trained.model, config, torch.float16, run.bits)
        Store(folder).write(final.name, content)
    distributed.wait()
    return final


def _kept(final: Path, last: Path) -> dict[str, Any] | None:
    """The configuration of the finished run's checkpoint; None where there is none, or it is damaged and can be made
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


def main(
    data: TrainingData,
    measured: Measured,
    recipe: Annotated[Path, typer.Argument(help="A file of recipes/, or your own.")],
    output: Annotated[str, typer.Option(help="Folder of the checkpoints, NAME.safetensors; resumed from when killed.")],
    only: shared.Only | None = None,
    device: shared.Device = "cpu",
) -> int:
    """Train every network of a recipe; validated on training images held out, never on test images: the last 5,000,
    of gtsrb every eighth track, of imagenette every tenth image, of a folder those of DIR/validation, or a tenth at
    most. Under torchrun, --device cuda is a GPU for each process.
    """
    check_device(device)
    runs = load_recipe(recipe)
    wanted = shared.chosen(only, [run.name for run in runs], "the recipe")
    images, validation = data.load("train"), data.load("validation")
    with distributed.joined(device) as own:
        shown_on = TextConsole(stderr=True, quiet=distributed.rank() > 0)
        for run in [run for run in runs if run.name in wanted]:

            def progress(
                number: int, config: TrainingConfig, run: TrainingRun = run
            ) -> AbstractContextManager[dict[str, Any]]:
                title = f"{run.name}, stage {number} of {len(run.stages)}"
                return shown(shown_on, len(images) // config.batch_size, title, images.notes)

            path = follow(run, images, validation, output, device=own, progress=progress, **asdict(measured))
            seconds = load_checkpoint(path).config["train_seconds"]
            shown_on.print(f"{path} is there, after {seconds / 60:.0f} minutes of training", soft_wrap=True)
    return HELD


INTERRUPTED = "interrupted; the finished epochs are kept, and the same command goes on"
app.command(cls=Command)(takes(main, interrupted=INTERRUPTED))

if __name__ == "__main__":
    app()

"""Folders of Hugging Face's image classifiers: config.json, preprocessor_config.json, model.safetensors.

`config.json` chooses one of transformers' own classes by its `model_type`, and sizes; it may not name code elsewhere
(`auto_map`), kernels, quantizers, adapters or timm's networks. The weights are safetensors, and all of them are used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustpatch.cli.text import one_line
from robustpatch.data.framing import Framing
from robustpatch.errors import InvalidInput
from robustpatch.intake.preprocessing import Preprocessing
from robustpatch.storage.bounded_json import read_object

FILES = ("config.json", "preprocessor_config.json", "model.safetensors")
_REFUSED = (
    "auto_map",
    "quantization_config",
    "_attn_implementation",
    "attn_implementation",
    "backbone",
    "custom_pipelines",
)
_RESAMPLING = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # PIL's numbers; 1 is Lanczos
_NEAR = 0.05  # how far a normalised value may be from what transformers' own processor makes of a picture


class Logits(nn.Module):
    """The logits of a classifier of transformers."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[Tensor, "B C H W"]) -> Tensor:
        return self.network(pixel_values=x).logits


def configuration(folder: Path) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """The preprocessing and the class names of the folder's classifier. Raises `InvalidInput`."""
    config = _config(folder)
    names = config.get("id2label")
    classes: tuple[str, ...] | None = None
    if isinstance(names, dict) and sorted(names) == sorted(map(str, range(len(names)))):
        classes = tuple(str(names[str(number)]) for number in range(len(names)))
        if all(
            name == f"LABEL_{number}" for number, name in enumerate(classes)
        ):  # what stands there where none are given
            classes = None
    found = _preprocessing(folder, _read(folder, "preprocessor_config.json"))
    _check_as_transformers(folder, found)
    return found, classes


def load(folder: Path) -> nn.Module:
    """The classifier, in evaluation mode. Raises `InvalidInput`."""
    config, transformers = _config(folder), _transformers(folder)
    try:
        with _quiet():
            network, info = transformers.AutoModelForImageClassification.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InvalidInput(
            f"model is {folder}, which transformers {transformers.__version__} does not build "
            f"({one_line(error, 200)}); save it anew with save_pretrained"
        ) from error
    lacking = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"]), *info["unexpected_keys"]])
    if lacking:
        raise InvalidInput(
            f"model is {folder}, a {config['model_type']} whose model.safetensors does not fit: "
            f"{one_line(lacking[0], 100)}; save a classifier of images, with its head"
        )
    return Logits(network).eval()


def _config(folder: Path) -> dict[str, Any]:
    lacking = [name for name in FILES if not (folder / name).is_file()]
    if lacking:
        raise InvalidInput(
            f"model is {folder}, a folder without {', '.join(lacking)}; save the model and its image processor there "
            "by save_pretrained, weights as safetensors"
        )
    if (folder / "adapter_config.json").exists():
        raise InvalidInput(f"model is {folder}, with an adapter beside the model; merge the two, and save the whole")
    config = _read(folder, "config.json")
    named = next((key for key in _REFUSED if config.get(key) is not None), None)
    if named is not None:
        raise InvalidInput(
            f"model is {folder}, whose config.json has {named} {one_line(repr(config[named]), 100)}, which could name "
            "code to run; remove it, or load the model in a FILE.py:NAME of your own"
        )
    known = _transformers(folder).models.auto.modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if config.get("model_type") not in known or config["model_type"] == "timm_wrapper":
        raise InvalidInput(
            f"model is {folder}, of model_type {one_line(repr(config.get('model_type')), 100)}, which is no classifier "
            "of images of transformers' own; name one of timm as timm:NAME with --weights"
        )
    return config


def _preprocessing(folder: Path, read: dict[str, Any]) -> Preprocessing:
    try:
        size, scaled = None, None
        if read.get("do_resize", True) and read.get("size") is not None:
            size, scaled = _sizes(read["size"], read.get("crop_pct"))
        if read.get("do_center_crop", False) and read.get("crop_size") is not None:
            size = _sizes(read["crop_size"], None)[0]
        by = bool(read.get("do_normalize", True))
        return Preprocessing(
            size=size,
            mean=tuple(map(float, read["image_mean"])) if by else (),
            std=tuple(map(float, read["image_std"])) if by else (),
            scaled=scaled,
            interpolation=_RESAMPLING[int(read.get("resample", 2))],
            channels=3,
            source=f"{folder.name}/preprocessor_config.json",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(
            f"model is {folder}, whose preprocessor_config.json is not understood ({one_line(repr(error), 200)}); give "
            "do_resize, size, do_normalize, image_mean and image_std as transformers writes them"
        ) from error


def _sizes(size: Any, share: float | None) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """The size of the image, and what pictures are scaled to."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if "shortest_edge" in size:
        side = int(size["shortest_edge"])
        return (side, side), int(side / share) if share and side < 384 else (side if not share else (side, side))
    both = int(size["height"]), int(size["width"])
    return both, both


def _check_as_transformers(folder: Path, found: Preprocessing) -> None:
    """Refuse a configuration that transformers' own processor understands otherwise: of a picture of noise."""
    transformers = _transformers(folder)
    picture = torch.randint(0, 256, (3, 300, 400), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = Framing((300, 400), (300, 400))(nn.functional.avg_pool2d(picture.float(), 5).to(torch.uint8))
    try:
        with _quiet():
            processor = transformers.AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            theirs = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0]).float()
        ours = (picture if found.framing is None else found.framing(picture)).float() / 255
        if found.mean:
            ours = (ours - torch.tensor(found.mean)[:, None, None]) / torch.tensor(found.std)[:, None, None]
        off = float((ours - theirs).abs().mean()) if ours.shape == theirs.shape else float("inf")
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise InvalidInput(
            f"model is {folder}, whose preprocessor_config.json transformers does not read ({one_line(error, 200)}); "
            "save it anew with save_pretrained"
        ) from error
    if not off <= _NEAR:
        raise InvalidInput(
            f"model is {folder}, whose image processor does more to a picture than scale, crop and normalise it (off "
            f"by {off:.2g}); load the model in a FILE.py:NAME of your own, with what it does"
        )


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_object((folder / name).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"model is {folder}, whose {name} cannot be read ({one_line(error, 200)}); mend it"
        ) from error


def _transformers(folder: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidInput(
            f"model is {folder}, but transformers is not installed; pip install 'robustpatch[huggingface]'"
        ) from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own lines and bars: what is wrong is said in one line here."""
    from transformers.utils import logging as theirs

    level, shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if shown:
            theirs.enable_progress_bar()

"""Checkpoints: safetensors files with the whole configuration inside, named ones shipped with the package."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from robustpatch.ablations.base import Ablation
from robustpatch.ablations.parse import parse_source
from robustpatch.ablations.sparse import SparseAblation
from robustpatch.classifiers.as_classifier import as_classifier
from robustpatch.classifiers.randomized import RandomizedClassifier
from robustpatch.classifiers.smoothed import SmoothedClassifier, voting_classifier
from robustpatch.cli.text import one_line
from robustpatch.configuration import check_configuration
from robustpatch.defenses import parse_defense
from robustpatch.encoding import encoding_named
from robustpatch.errors import InvalidInput
from robustpatch.networks import build
from robustpatch.networks.size_limit import at_most
from robustpatch.storage.sealing import BLANK_SEAL, read_tensors, seal_holds, sealed
from robustpatch.storage.store import MOST_BYTES, replace_file
from robustpatch.voting.parse import parse_voting
from robustpatch.voting.rules import Voting

_PLAIN, _PACKED = ".safetensors", ".safetensors.xz"
FORMAT, SEAL = 1, "seal"  # keys of a checkpoint's configuration are the writer's, but for these two


@dataclass(frozen=True)
class Checkpoint:
    """A trained classifier in evaluation mode, smoothed, randomized (sparse ablation), otherwise defended or
    undefended, what it was built from, the SHA-256 of the file (unpacked).
    """

    model: nn.Module
    config: dict[str, Any]
    path: Path
    sha256: str

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.name.removesuffix(".xz").removesuffix(_PLAIN)

    @property
    def smoothed(self) -> SmoothedClassifier:
        """The model, where it is a smoothed classifier; any other is refused with `InvalidInput`."""
        about, found = as_classifier(self.model).describe(), voting_classifier(as_classifier(self.model))
        if "sampling" in about:
            raise InvalidInput(
                f"checkpoint {self.path.name} is of a sparse ablation, whose votes can only be sampled; name one of a "
                "smoothed classifier, or take robustpatch.checkpoints.load_checkpoint(…).model, a RandomizedClassifier"
            )
        if "defense" in about:
            raise InvalidInput(
                f"checkpoint {self.path.name} is of {about['defense']}, no smoothed classifier; name one of those, "
                "or take robustpatch.checkpoints.load_checkpoint(…).model"
            )
        if found is None:
            raise InvalidInput(
                f"checkpoint {self.path.name} is undefended: it hides nothing, casts no votes and certifies nothing; "
                "name one of a smoothed classifier, or take robustpatch.checkpoints.load_checkpoint(…).model"
            )
        return found


def names() -> list[str]:
    """The checkpoints shipped in the package."""
    folder = resources.files("robustpatch") / "weights"
    if not folder.is_dir():
        return []
    return sorted(
        name
        for name, dot, ending in (entry.name.partition(".") for entry in folder.iterdir())
        if dot + ending in (_PLAIN, _PACKED)
    )


def model_from(config: dict[str, Any], voting: Voting | None = None, *, pretrained: bool = False) -> nn.Module:
    """An untrained classifier from a configuration: a smoothed one, a randomized one where `ablation` is sparse, or,
    where it is None, the network alone; with a `defense`, that around it.

    Keys: network (name and options), image_shape [C,H,W], class_names, ablation; with an ablation, voting, guard and
    encoding too; where there is one, defense. Nothing in it reads a file or runs code, and only with `pretrained` is a
    network's option of that name obeyed, which downloads weights: a checkpoint holds its own. Raises `InvalidInput`.
    """
    check_configuration(config)
    ablation = None if config["ablation"] is None else parse_source(config["ablation"])
    defense = None if config.get("defense") is None else parse_defense(config["defense"])
    encoding = None if ablation is None else encoding_named(config["encoding"])
    channels, height, width = config["image_shape"]
    options = {key: value for key, value in config["network"].items() if pretrained or key != "pretrained"}
    network = build(
        options.pop("name"),
        ablation=ablation,
        image_shape=(channels, height, width),
        num_classes=len(config["class_names"]),
        encoding=defense.encoding if ablation is None and defense is not None else encoding,
        options=options,
    )
    classes = len(config["class_names"])
    model = network
    if ablation is not None and encoding is not None:
        voting = voting or parse_voting(config["voting"], config["guard"])
        kind = RandomizedClassifier if isinstance(ablation, SparseAblation) else SmoothedClassifier
        model = kind(network, ablation, num_classes=classes, encoding=encoding, voting=voting)  # type: ignore[arg-type]
    return model if defense is None else defense.wrap(model, num_classes=classes)


def network_of(model: nn.Module) -> nn.Module:
    """The module that holds the weights: the base of a smoothed or randomized classifier, the network in a defense, an
    undefended network itself.
    """
    return as_classifier(model).weights_module()


def save_checkpoint(
    path: str | Path,
    model: nn.Module,
    config: dict[str, Any],
    dtype: torch.dtype | None = None,
    bits: int | None = None,
) -> None:
    """Write the weights and their configuration; the file appears whole or not at all. See `checkpoint_bytes`.

    A path that ends in .safetensors.xz is packed: weights of four `bits` to a half.
    """
    content = checkpoint_bytes(model, config, dtype, bits)
    replace_file(path, lzma.compress(content) if str(path).endswith(_PACKED) else content)


def checkpoint_bytes(
    model: nn.Module, config: dict[str, Any], dtype: torch.dtype | None = None, bits: int | None = None
) -> bytes:
    """The file of a checkpoint, the weights and their configuration, sealed by a checksum; equal ones are equal files.

    With `dtype` = float16 the weights are rounded to it, at half the size; what is loaded again computes in float32,
    with the weights as rounded. With `bits`, they are rounded to so many binary digits after the first before that:
    no smaller a file, but one that packs better, with 4 to a half. Raises `InvalidInput` where a weight is too large.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network_of(model).state_dict().items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (dtype is not None or bits is not None):
            tensors[name] = (tensor if bits is None else _rounded(tensor, bits)).to(dtype or tensor.dtype)
            if not bool(torch.isfinite(tensors[name]).all()):
                raise InvalidInput(f"dtype is {dtype}, in which {name} is not finite; keep the weights in float32")
    note = {"format": FORMAT, **{key: value for key, value in config.items() if key != SEAL}, SEAL: BLANK_SEAL}
    return sealed(save(tensors, {"robustpatch": json.dumps(note)}))


def _rounded(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    fraction, exponent = torch.frexp(tensor)  # of which the first digit is at 1/2
    return torch.ldexp((fraction * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def load_checkpoint(
    name: str | Path, *, ablation: Ablation | SparseAblation | None = None, voting: Voting | None = None
) -> Checkpoint:
    """A shipped checkpoint by name, or a file by path. `voting` replaces the stored rule; `ablation` must equal it.

    Raises `InvalidInput` for a missing, damaged or foreign file, and when it was trained for another ablation. An
    undefended checkpoint has neither ablation nor voting.
    """
    path = _find(name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        content = _unpacked(path.read_bytes()) if path.name.endswith(_PACKED) else path.read_bytes()
        tensors, config = read_tensors(content, "robustpatch")
        if isinstance(config, dict) and SEAL in config and not seal_holds(content):  # older ones have none
            raise ValueError("its checksum is wrong")
    except (SafetensorError, OSError, ValueError, lzma.LZMAError) as error:
        raise InvalidInput(
            f"checkpoint {path} is damaged or no safetensors file ({one_line(error, 200)}); fetch it again"
        ) from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InvalidInput(
            f"checkpoint {path} has no robustpatch configuration of format {FORMAT}; train it with "
            "robustpatch train, or save it with robustpatch.checkpoints.save_checkpoint"
        )
    undefended = "ablation" in config and config["ablation"] is None
    what = f"is of {config['defense']}" if config.get("defense") else "is undefended"
    if ablation is not None and str(ablation) != config.get("ablation"):
        trained = f"{what} and has none" if undefended else f"was trained for {config.get('ablation')}"
        raise InvalidInput(
            f"ablation is {ablation}, but checkpoint {path.name} {trained}; drop --ablation or name another checkpoint"
        )
    if voting is not None and undefended:
        raise InvalidInput(f"voting is {voting}, but checkpoint {path.name} {what} and casts no votes; drop it")
    try:
        with at_most(sum(tensor.numel() for tensor in tensors.values()), len(tensors)):
            model = model_from(config, voting)
        network_of(model).load_state_dict(tensors)
    except InvalidInput as error:
        raise InvalidInput(f"checkpoint {path}: {one_line(error, 400)}") from error
    except Exception as error:  # what constructors raise for values that they were not meant for is of any kind
        raise InvalidInput(
            f"checkpoint {path}: its configuration is incomplete or does not fit its weights "
            f"({type(error).__name__}: {one_line(error, 300)}); train it again with robustpatch train"
        ) from error
    config.pop(SEAL, None)
    return Checkpoint(model.eval(), config, path, hashlib.sha256(content).hexdigest())


def _unpacked(packed: bytes) -> bytes:
    """What an .xz file holds. Raises `ValueError` where that is a hundred times as large, as no weights are."""
    reader, most = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2**27), 2**20 + 100 * len(packed)
    content = reader.decompress(packed, most + 1)
    if not reader.eof or reader.unused_data or len(content) > most:
        raise ValueError(f"it is cut off, followed by something else, or holds more than {most:,} bytes")
    return content


def _find(name: str | Path) -> Path:
    if str(name) in names():
        path = Path(str(resources.files("robustpatch") / "weights" / f"{name}{_PLAIN}"))
        return path if path.exists() else path.with_name(f"{name}{_PACKED}")
    path = os.path.expanduser(name)
    if not os.path.isfile(path):  # nor for a text that no file can be called
        shown = one_line(repr(str(name)), 300)
        raise InvalidInput(f"checkpoint is {shown}, neither a file nor one of: {', '.join(names())}")
    return Path(path)

"""The classifiers of torchvision and timm, and their options, that a configuration may ask for.

A configuration comes with a checkpoint, and checkpoints come from anybody. Both libraries take options that download a
file, read one or unpickle it (`checkpoint_path`, `pretrained_cfg`, `weights_backbone`), and names that do
("hf-hub:…", "local-dir:…"); so what is not known to be a size, a rate or a flag is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import Field

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput
from robustpatch.options import read, table_of

_FLAGS = (
    "aux_logits",
    "avg_down",
    "class_token",
    "dynamic_img_size",
    "final_norm",
    "init_weights",
    "memory_efficient",
    "no_embed_class",
    "pool_include_prefix",
    "pre_norm",
    "pretrained",
    "proj_bias",
    "qk_norm",
    "qkv_bias",
    "replace_stem_pool",
    "transform_input",
    "zero_init_last",
    "zero_init_residual",
)
_NUMBERS = (
    "attention_dropout",
    "attn_drop_rate",
    "base_width",
    "bn_size",
    "block_reduce_first",
    "cardinality",
    "channels",
    "depth",
    "depths",
    "dims",
    "down_kernel_size",
    "drop_block_rate",
    "drop_path_rate",
    "drop_rate",
    "dropout",
    "embed_dim",
    "enlarge",
    "groups",
    "growth_rate",
    "in_chans",
    "init_values",
    "layer_scale",
    "layers",
    "mean",
    "mlp_ratio",
    "num_heads",
    "num_init_features",
    "output_stride",
    "patch_drop_rate",
    "patch_size",
    "pos_drop_rate",
    "proj_drop_rate",
    "reg_tokens",
    "representation_size",
    "std",
    "stem_width",
    "stochastic_depth_prob",
    "width_mult",
    "width_per_group",
    "window_size",
)  # one, or a list of them
_WORDS = ("global_pool", "pos_embed", "stem_type", "weight_init")
_Number = Annotated[float, Field(ge=-(2**16), le=2**16)]


@cache
def _permitted(several: frozenset[str]) -> Any:
    """The type of tables of options, where the numbers called `several` are lists of numbers."""
    numbers = {name: Annotated[Sequence[_Number], Field(min_length=1, max_length=64)] for name in several}
    words = Annotated[str, Field(pattern=r"^[a-z0-9_]{0,32}$")]
    return table_of(
        dict.fromkeys(_FLAGS, bool) | dict.fromkeys(_NUMBERS, _Number) | dict.fromkeys(_WORDS, words) | numbers
    )


def check_permitted(name: str, library: str, model: str, options: dict[str, Any]) -> None:
    """Refuse, with `InvalidInput`, a classifier called `name`, `library`'s `model`, that is not on its
    list, and options other than sizes, rates, flags and plain words of the known names.
    """
    if not _is_listed(library, model):
        raise InvalidInput(
            f"network is {one_line(name, 80)}, which is none of {library}'s classifiers; take one that "
            f"{'torchvision.models' if library == 'torchvision' else 'timm'}.list_models() names"
        )
    several = frozenset(key for key, value in options.items() if key in _NUMBERS and isinstance(value, list | tuple))
    read(_permitted(several), options, f"network {name}: ")


def _is_listed(library: str, model: str) -> bool:
    if library == "torchvision":
        import torchvision  # slow to import

        return model in torchvision.models.list_models(module=torchvision.models)
    try:
        import timm
    except ImportError:
        return True  # refused, with what to install, where it is built
    return bool(timm.is_model(model))

"""The classifiers of torchvision and timm, and their options, that a configuration may ask for.

A configuration comes with a checkpoint, and checkpoints come from anybody. Both libraries take options that download a
file, read one or unpickle it (`checkpoint_path`, `pretrained_cfg`, `weights_backbone`), and names that do
("hf-hub:…", "local-dir:…"); so what is not known to be a size, a rate or a flag is refused.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any

import torchvision

from robustpatch.cli.text import one_line
from robustpatch.errors import InvalidInput

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
_MOST, _LONGEST = 2**16, 64  # of a number; of a list


def check_permitted(name: str, library: str, model: str, options: dict[str, Any]) -> None:
    """Refuse, with `InvalidInput`, a classifier called `name`, `library`'s `model`, that is not on its list, and
    options other than sizes, rates, flags and plain words of the known names.
    """
    if not _is_listed(library, model):
        raise InvalidInput(
            f"network is {one_line(name, 80)}, which is none of {library}'s classifiers; take one that "
            f"{'torchvision.models' if library == 'torchvision' else 'timm'}.list_models() names"
        )
    unknown = sorted(map(str, options.keys() - {*_FLAGS, *_NUMBERS, *_WORDS}))
    if unknown:
        raise InvalidInput(
            f"network is {name} with the option {one_line(', '.join(unknown), 200)}; a configuration may give sizes, "
            f"rates and flags: {', '.join(sorted((*_NUMBERS, *_FLAGS, *_WORDS)))}; leave it out"
        )
    for key, value in options.items():
        fits, kind = _is_word(value), "a word"
        if key in _FLAGS:
            fits, kind = isinstance(value, bool), "true or false"
        elif key in _NUMBERS:
            several = isinstance(value, list | tuple) and 0 < len(value) <= _LONGEST
            fits, kind = all(map(_is_number, value if several else [value])), f"a number up to {_MOST:,}, or some"
        if not fits:
            raise InvalidInput(f"network is {name} with {key} {one_line(repr(value), 80)}; {kind} is needed")


def _is_listed(library: str, model: str) -> bool:
    if library == "torchvision":
        return model in torchvision.models.list_models(module=torchvision.models)
    try:
        import timm
    except ImportError:
        return True  # refused, with what to install, where it is built
    return bool(timm.is_model(model))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and abs(value) <= _MOST


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9_]{0,32}", value) is not None

"""The configuration of a checkpoint, which anybody may have written: its values have the types that they need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, Strict

from robustpatch.errors import InvalidInput
from robustpatch.options import OPEN, read, table_of

_SIDE, _CHANNELS, _CLASSES = 2**13, 64, 2**17
_Text = Annotated[str, Field(max_length=2**12)]
_Side = Annotated[int, Field(ge=1, le=_SIDE)]
_CONFIGURATION = table_of(
    {
        "network": dict[str, Any],
        "image_shape": Annotated[tuple[Annotated[int, Field(ge=1, le=_CHANNELS)], _Side, _Side], Strict(False)],
        "class_names": Annotated[Sequence[_Text], Field(min_length=1, max_length=_CLASSES)],
        **dict.fromkeys(("ablation", "defense", "voting", "encoding"), _Text | None),
        "guard": float | None,
    },
    OPEN,
)


def check_configuration(config: dict[str, Any]) -> None:
    """Refuse, with `InvalidInput`, values of other types than a configuration has, and images or lists of classes of
    sizes that no network here is for. What is missing is left for those who need it to say.
    """
    try:
        read(_CONFIGURATION, config)
        read(table_of({"name": str}, OPEN), config.get("network", {}), "network's ")
    except InvalidInput as error:
        raise InvalidInput(f"the configuration's {error}: fetch or train it again") from None

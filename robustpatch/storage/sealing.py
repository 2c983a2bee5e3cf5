"""A checksum of a file inside the file itself: no byte of it changes unseen."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from safetensors.torch import load
from torch import Tensor

from robustpatch.storage.bounded_json import read_json, read_object

_MARK, _BLANK = b"seal-sha256:", b"0" * 64
BLANK_SEAL = (_MARK + _BLANK).decode()  # what is written in the file where its seal is to stand, last of such texts


def sealed(content: bytes) -> bytes:
    """The content with the SHA-256 of itself in place of the zeros of its last `BLANK_SEAL`; as long as before."""
    head, mark, tail = content.rpartition(_MARK + _BLANK)
    assert mark, "content has no BLANK_SEAL"
    return head + _MARK + sha256(content).hexdigest().encode() + tail


def seal_holds(content: bytes) -> bool:
    """Return whether this is, to the byte, what `sealed` returned."""
    at = content.rfind(_MARK) + len(_MARK)
    stored, blank = content[at : at + len(_BLANK)], content[:at] + _BLANK + content[at + len(_BLANK) :]
    return at >= len(_MARK) and sha256(blank).hexdigest().encode() == stored


def read_tensors(content: bytes, key: str) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a safetensors file, and the JSON that its metadata hold under `key`; None where they hold none.

    The seal is not looked at. Raises `SafetensorError` and `ValueError` for what is no such file.
    """
    tensors = load(content)
    header = read_object(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return tensors, read_json((header.get("__metadata__") or {}).get(key, "null"))

"""A checksum of a file inside the file itself: no byte of it changes unseen."""

from __future__ import annotations

from hashlib import sha256

_MARK, _BLANK = b"seal-sha256:", b"0" * 64
BLANK_SEAL = (_MARK + _BLANK).decode()  # what is written in the file where its seal is to stand, last of such texts


def sealed(content: bytes) -> bytes:
    """The content with the SHA-256 of itself in place of the zeros of its last `BLANK_SEAL`; as long as before."""
    head, mark, tail = content.rpartition(_MARK + _BLANK)
    assert mark, "content has no BLANK_SEAL"
    return head + _MARK + sha256(content).hexdigest().encode() + tail


def seal_holds(content: bytes) -> bool:
    """Whether this is, to the byte, what `sealed` returned."""
    at = content.rfind(_MARK) + len(_MARK)
    stored, blank = content[at : at + len(_BLANK)], content[:at] + _BLANK + content[at + len(_BLANK) :]
    return at >= len(_MARK) and sha256(blank).hexdigest().encode() == stored

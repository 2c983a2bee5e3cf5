"""What a file that anybody may have written must never make this process do: noted, and stopped.

An audit hook sees sockets, programs and pickles before they come to be. It stays for the life of the process, as all
audit hooks do, and looks away but within `forbidden`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NEVER = (
    "socket.",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "pty.spawn",
    "pickle.find_class",
    "urllib.Request",
    "http.client",
    "ftplib",
    "webbrowser.open",
)
_CHANGES = ("shutil.", "os.remove", "os.rename", "os.mkdir", "os.symlink")
_active: list[tuple[list[str], tuple[str, ...], bool]] = []


class Attempted(BaseException):
    """Not an `Exception`: no loader may take it for a damaged file."""


@contextmanager
def forbidden(*secrets: str | Path, writes: bool = True) -> Iterator[list[str]]:
    """The attempts made in here, each stopped by `Attempted`: to open a socket, start a program, find a class for a
    pickle, write or remove a file (unless not `writes`), or read one of `secrets`.
    """
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    attempts: list[str] = []
    _active.append((attempts, tuple(str(secret) for secret in secrets), writes))
    try:
        yield attempts
    finally:
        _active.pop()


_hooked: list[bool] = []


def _hook(event: str, arguments: tuple) -> None:
    if not _active:
        return
    attempts, secrets, watches = _active[-1]
    what = None
    if event.startswith(_NEVER) or (watches and event.startswith(_CHANGES)):
        what = f"{event} {arguments!r}"
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path, flags = os.fsdecode(arguments[0]), arguments[2] or 0
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        harmless = path == os.devnull or "__pycache__" in path
        if (writes and watches and not harmless) or any(secret in path for secret in secrets):
            what = f"open {path} {arguments[1:]!r}"
    if what is not None:
        attempts.append(what[:200])
        raise Attempted(what[:200])

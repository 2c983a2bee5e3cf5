"""matplotlib, whatever the environment says of windows."""

from __future__ import annotations

import os


def load_matplotlib() -> None:
    """Import matplotlib without the backend that MPLBACKEND names: pictures are drawn to files, which needs none, and a
    notebook's name for its own, handed on to a command, would be refused in an environment without that notebook.
    """
    named = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: F401
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named

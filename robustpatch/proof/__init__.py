"""A certificate on disk, and a verifier without torch: `python -m robustpatch.proof verify FILE`."""

from robustpatch.proof.verifier import verify, write

__all__ = ["verify", "write"]

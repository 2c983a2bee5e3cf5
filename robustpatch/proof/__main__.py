"""python -m robustpatch.proof verify FILE: check a certificate on disk, or a safety case, without torch."""

from __future__ import annotations

import sys

from robustpatch.proof import verifier
from robustpatch.proof.bundle import check, is_bundle, told


def main(arguments: list[str]) -> int:
    """The exit status: 0 where every claim follows, 1 where one does not, 2 where the file is no proof."""
    if len(arguments) != 2 or arguments[0] != "verify" or not is_bundle(arguments[1]):
        return verifier.main(arguments)
    try:
        lines, status = told(check(arguments[1]))
    except Exception as error:  # a damaged file can fail in any way, and each way means: nothing was proved
        verifier.refuse(arguments[1], error)
        return 2
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

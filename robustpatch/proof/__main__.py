"""python -m robustpatch.proof verify FILE: check a certificate on disk, without torch."""

from __future__ import annotations

import sys

from robustpatch.proof.verifier import main

sys.exit(main(sys.argv[1:]))

"""python -m robustpatch: the program `robustpatch`, where its script is not on the path."""

from importlib import import_module

import_module("robustpatch.evaluate.cli.program").app(prog_name="robustpatch")

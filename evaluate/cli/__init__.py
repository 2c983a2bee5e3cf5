"""The command line of an evaluation: options, circumstances, and the program `robustpatch`."""

"""The model of a run: loading it, and telling whether it is still the same."""

"""Safety cases: a run, its certificates and the evidence of each in one archive, and the check of it."""

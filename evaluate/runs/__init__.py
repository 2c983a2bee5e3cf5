"""A run and what it writes: batches, records, counterexamples, the gallery."""

"""Training of base classifiers, resumable to the bit."""

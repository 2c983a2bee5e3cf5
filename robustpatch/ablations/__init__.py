"""Ablations: the pixels that each ablated view keeps, and the views that a patch can touch."""

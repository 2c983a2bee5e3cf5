"""Smoothed and randomized classifiers as modules, and what their proofs check of a base."""

"""Votes and geometry -> certificates: arithmetic of integers, no network."""

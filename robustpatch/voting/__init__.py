"""Scores of ablated views -> votes."""

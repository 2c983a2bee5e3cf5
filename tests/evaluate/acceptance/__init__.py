"""Certifiers that the audit is examined with: three unsound ones of each kind (a) to (g), and sound ones of many kinds.

Each is written as a stranger might write it. `test_certifiers.py` shows that the unsound ones are unsound and searches
the sound ones for a counterexample in vain; `test_examination.py` (slow) runs the audit on all of them.
"""

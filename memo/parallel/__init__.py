"""Sequence parallelism: every rank holds some tokens of a sequence, and attention sees all of it.

Read `contracts.py` first, then `view.py` and `core.py`.
"""

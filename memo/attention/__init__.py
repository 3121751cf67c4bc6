"""Attention: masks as ranges, kernels that keep only o and the log-sum-exp, and the seam into
transformers.

Read `contracts.py` and `masks.py` first, then `core.py` and `interface.py`.
"""

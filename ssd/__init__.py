"""The disk as a tier: I/O engines, the spool, aligned buffers, faults, wear.

Nothing is here yet, and no part of the project writes activations to a disk so far. The package is
listed so that its name and its place are settled: it will know bytes, extents and files, and
nothing of tensors, models or training; `offload` will be its only caller.
"""

"""The loss: logits are never whole.

`lazy.py` stands in for the logits while the model's own forward runs; `tiled.py` computes head and
cross-entropy tile by tile; `seam.py` puts both in the model's way for the time of one forward.
"""

"""The self-check at wrap time: which layers can run tile by tile is proved, never guessed.

`layers.py` is the check itself, `capture.py` finds out how the model calls its layers,
`difference.py` compares, `training.py` looks at what a layer does in training only.
"""

from memo.check.layers import check_layers, is_tokenwise

__all__ = ["check_layers", "is_tokenwise"]

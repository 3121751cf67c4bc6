"""Tracing a training step: the runtime itself, run on fake tensors under the planner's recorder.

`step.py` is the way in (`trace_step`); `models.py` makes a model of a config, `twin.py` tells which
layers can be tiled, `runtime.py` runs one layer of each class and a few tiles, `marks.py` tells the
recorder what runs, `fused.py` is a CUDA device's attention, and `settled.py` what fake tensors
cannot decide.
"""

from memo.tracing.models import load_config
from memo.tracing.step import trace_step

__all__ = ["load_config", "trace_step"]

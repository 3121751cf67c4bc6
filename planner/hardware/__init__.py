"""Hardware as data: what a device, its links, its host and its disks can hold and do.

Scope: the contracts, a table of GPUs with sources, and the spelling of options. Measuring what is
there is not the planner's business: it gets a `Hardware` and believes it.
"""

from planner.hardware.contracts import Disks, Efficiency, Hardware
from planner.hardware.named import find_gpu, named_hardware
from planner.hardware.options import parse_disks
from planner.hardware.table import GPUS, Gpu

__all__ = [
    "GPUS",
    "Disks",
    "Efficiency",
    "Gpu",
    "Hardware",
    "find_gpu",
    "named_hardware",
    "parse_disks",
]

"""The runtime: layers run tile by tile, and tensors that wait for backward lie where the policy
says.

Read `contracts.py` first, then `layer.py`, `forward.py` and `backward.py`. This package knows
torch, nothing of transformers, and nothing of planning.
"""

from offload.contracts import (
    Core,
    CoreCall,
    CoreEnd,
    CoreState,
    Lane,
    MemoError,
    Placement,
    Policy,
    SpillError,
    SplitLayer,
    Tier,
    Tile,
    TileOutput,
    TransferError,
    Turn,
)
from offload.counts import LayerCount
from offload.ends import Outlet, inlet, run_backward
from offload.forward import TiledForward
from offload.layer import run_tiled
from offload.meter import LaneCount, Span
from offload.recording import Recording
from offload.replay import Replay
from offload.spool_disk import open_disk
from offload.store import TensorStore
from offload.tiles import Joined, split_tokens, spread_placements
from offload.tokenwise import run_tokenwise
from offload.whole import run_whole

__all__ = [
    "Core",
    "CoreCall",
    "CoreEnd",
    "CoreState",
    "Joined",
    "Lane",
    "LaneCount",
    "LayerCount",
    "MemoError",
    "Outlet",
    "Placement",
    "Policy",
    "Recording",
    "Replay",
    "Span",
    "SpillError",
    "SplitLayer",
    "TensorStore",
    "Tier",
    "Tile",
    "TileOutput",
    "TiledForward",
    "TransferError",
    "Turn",
    "inlet",
    "open_disk",
    "run_backward",
    "run_tiled",
    "run_tokenwise",
    "run_whole",
    "split_tokens",
    "spread_placements",
]

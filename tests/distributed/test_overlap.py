"""A tile's exchange is under way while the next tile is projected: nobody waits to begin."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import torch

from memo.attention.masks import RangeMask
from memo.parallel.tiled import TiledExchange
from memo.parallel.wire import Wire
from offload import CoreCall, split_tokens
from tests.distributed.jobs import Case, call_of, core_of
from tests.distributed.ranks import run_ranks

TILE_TOKENS, TILES = 8, 3
CASE = Case(mask=RangeMask.full(2 * TILES * TILE_TOKENS, causal=True), batch=2)


def _tiles(call: CoreCall) -> list[CoreCall]:
    cuts = [(tile.start, tile.stop) for tile in split_tokens(TILES * TILE_TOKENS, TILE_TOKENS)]
    heads = [tuple(head[:, :, slice(*cut)] for head in call.heads) for cut in cuts]
    return [replace(call, heads=of_tile) for of_tile in heads]


def _one_ahead(wire: Wire, folder: Path) -> bool:
    """Rank 0 writes a tile and goes on; rank 1 writes its own when it has been told of that. Were
    an exchange to wait for its end where it is begun, neither would get further.
    """
    core, _ = core_of(wire, CASE)
    call = call_of(CASE, core.view)
    joined = TiledExchange(core, TILE_TOKENS)
    cuts = split_tokens(TILES * TILE_TOKENS, TILE_TOKENS)
    for tile, of_tile in zip(cuts, _tiles(call), strict=True):
        told = folder / f"{tile.index}"
        while wire.group.rank == 1 and not told.exists():
            time.sleep(0.01)
        joined.write(tile, of_tile)
        told.touch()
    whole = core.forward(joined.value(), None)[0]
    return torch.equal(whole, core.forward(call, None)[0])


def test_an_exchange_is_begun_without_the_others(tmp_path: Path) -> None:
    assert run_ranks(_one_ahead, 2, tmp_path, tmp_path, timeout_s=10.0) == [True, True]

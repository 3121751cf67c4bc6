"""What `memo.wrap` does for sequence parallelism: is this model one whose tokens can be shared?

Scope: refusals of models, proved on a few random tokens as the self-check of layers is, and the
state that a wrapped model then carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils import _pytree as pytree

from memo.attention.core import AttentionCore
from memo.attention.interface import Seam
from memo.check.capture import LayerCall, capture_calls, evaluating, some_ids
from memo.check.difference import differs
from memo.contracts import LayerMode, Options
from memo.layers import LayerArguments
from memo.parallel.agreement import check_refusals
from memo.parallel.call import Parallel
from memo.parallel.contracts import Stored
from memo.parallel.groups import open_group
from memo.parallel.rotary import growing_tables
from memo.parallel.wire import Wire
from memo.switch import Switch
from offload import MemoError, TensorStore, Tile

_SHARE = Tile(0, 24, 53)
"""The tokens that stand for a rank's, of those that `some_ids` has: neither first nor last."""

_PADS = 5


def set_up(
    asked: int | dist.ProcessGroup,
    model: nn.Module,
    samples: dict[str, nn.Module],
    modes: Mapping[str, LayerMode],
    options: Options,
    stored: Stored = Stored.BEFORE,
) -> Parallel:
    """The state of a model over ranks; `samples` has a layer of each kind, the model's first one
    first; `stored` is what attention's backward will find in the store. All ranks of the job call
    it when `asked` is a number, else those of the group.

    Raises:
        MemoError: for a model that mixes tokens outside attention, or that cannot be told which
            positions its tokens have.
    """
    refusal, moves = _examined(model, samples, modes)
    wire = Wire(open_group(asked))
    check_refusals(refusal, wire.group)
    settings = {
        "the model": type(model).__name__,
        "its layers": tuple(modes),
        "their dtype": str(next(model.parameters()).dtype),
        "tile_tokens": options.tile_tokens or "auto",
        "tiled_loss": options.tiled_loss,
        "what is stored": stored.value,
    }
    return Parallel(wire, settings, pads_move_positions=moves, stored=stored)


def _examined(
    model: nn.Module, samples: dict[str, nn.Module], modes: Mapping[str, LayerMode]
) -> tuple[MemoError | None, bool]:
    """Why this rank finds that tokens cannot be shared, if it does, and what `check_entrance`
    returns. Numbers decide, and ranks may be machines that round differently.
    """
    try:
        check_kinds(samples, modes)
        return None, check_entrance(model, samples)
    except MemoError as error:
        return error, False


def check_kinds(samples: dict[str, nn.Module], modes: Mapping[str, LayerMode]) -> None:
    """Raise `MemoError` for a kind of layer that needs the tokens of other ranks."""
    for kind, mode in modes.items():
        if not mode.is_tiled:
            raise MemoError(
                f"layers of class {kind} cannot share a sequence among ranks: only what is "
                f"token-wise outside attention can, and is this proved not to be ({mode.reason}); "
                "wrap the model without sequence_parallel"
            )
        if growing_tables(samples[kind]):
            raise MemoError(
                f"layers of class {kind} cannot share a sequence among ranks: each has rotary "
                "tables of its own that follow the sequence's length"
            )


def check_entrance(model: nn.Module, samples: dict[str, nn.Module]) -> bool:
    """Compare what the first layer is given on some tokens of a sequence, with their positions,
    with its tokens of the whole: embeddings, positions, and whatever else a model makes before its
    layers. Returns whether a model counts positions from a padding mask.

    Raises:
        MemoError: when they differ, or when the model takes no positions.
    """
    devices = [p.device.index for p in model.parameters() if p.is_cuda]
    with torch.random.fork_rng(sorted(set(devices))), evaluating(model):
        ids = some_ids(model)
        positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
        share = slice(_SHARE.start, _SHARE.stop)
        with Switch.of(model, attention=True).on(), Seam(AttentionCore(TensorStore())).entered():
            whole = _first_call(model, samples, ids)
            part = _first_call(model, samples, ids[:, share], position_ids=positions[:, share])
            reason = _difference(part, _cut(whole))
            if reason is not None:
                raise MemoError(
                    f"{type(model).__name__} cannot share a sequence among ranks: what stands "
                    f"before its layers gives a token something else ({reason}) on a share with "
                    "position_ids than in the whole sequence"
                )
            return _pads_move_positions(model, samples, ids, positions)


def _pads_move_positions(
    model: nn.Module, samples: dict[str, nn.Module], ids: Tensor, positions: Tensor
) -> bool:
    padding = torch.ones_like(ids)
    padding[:, :_PADS] = 0
    given = _first_call(model, samples, ids, attention_mask=padding, position_ids=positions)
    left = _first_call(model, samples, ids, attention_mask=padding)
    return _difference(left, given) is not None


def _first_call(
    model: nn.Module, samples: dict[str, nn.Module], ids: Tensor, **known: Tensor
) -> LayerCall:
    kind, layer = next(iter(samples.items()))
    try:
        return capture_calls(cast(Any, partial(model, **known)), {kind: layer}, ids)[kind]
    except TypeError as error:
        raise MemoError(
            f"{type(model).__name__} cannot share a sequence among ranks: it takes no "
            f"{' and no '.join(known)} ({error})"
        ) from error


def _cut(call: LayerCall) -> LayerCall:
    x, *args = call.args
    arguments = LayerArguments(tuple(args), call.kwargs, x.shape[1])
    rest, kwargs = arguments.tile(_SHARE)
    return LayerCall((x[:, _SHARE.start : _SHARE.stop], *rest), kwargs)


def _difference(got: LayerCall, expected: LayerCall) -> str | None:
    """What differs: the hidden states, or a tensor beside them."""
    pairs = zip(_tensors(got), _tensors(expected), strict=True)
    for index, (mine, whole) in enumerate(pairs):
        name = "argument" if index else "hidden states"
        if mine.shape[1:] != whole.shape[1:]:
            return f"{name} of shape {tuple(mine.shape)}, not {tuple(whole.shape)}"
        mine, whole = torch.broadcast_tensors(mine, whole)  # positions of one row are of all
        half = mine.dtype in (torch.bfloat16, torch.float16)
        tolerance_of = torch.float16 if half else torch.float32
        if differs([_real(mine)], [_real(whole)], ["output"], tolerance_of):
            return name
    return None


def _tensors(call: LayerCall) -> list[Tensor]:
    """In an order of their own: hidden states first, keywords by name."""
    named = sorted((n, v) for n, v in call.kwargs.items() if n != "cache_position")
    leaves = pytree.tree_leaves((call.args, named))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor

"""One rank's work, run here: predicted beside measured, without the other ranks.

Scope: `emulate`. The rank's share of a sequence runs through the wrapped model as it would among
others, with random weights; what other ranks would send is a copy of what this one sends
(`memo.parallel.alone`), so that every tensor has its size and every kernel its work, and losses and
gradients mean nothing. Model states are not divided here: predictions are those of ZeRO stage 0
without an optimizer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from memo.attention.interface import register
from memo.check import check_layers
from memo.kinds import find_layers, samples_of
from memo.measure import PeakMemory
from memo.parallel.alone import LoneWire
from memo.parallel.call import Parallel
from memo.parallel.contracts import Stored as StoredHere
from memo.parallel.setup import check_entrance, check_kinds
from memo.parallel.shares import share_sequence
from memo.planning.predicting import Predictor
from memo.planning.request import PlanRequest
from memo.planning.states import states_of
from memo.wrap import runtime_of, unwrap, wrap
from planner.contracts import Placement, Stored, Tier

_WARM_UP_TOKENS = 128
"""Of the rank: loads code, and makes what is made once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Emulation:
    """A rank's forward and backward. `predicted_bytes` and `measured_bytes`: the peak of gradients
    and activations, above weights and inputs. `predicted_s`: of compute alone, as is `measured_s`
    but for the copies that stand for what is sent. Predicted is a rank with as much to do as any:
    where rows of a ring are of one rank, early ones have less. `sent_bytes`: to all other ranks.
    """

    rank: int
    ranks: int
    tokens: int
    tile_tokens: int
    predicted_bytes: int
    measured_bytes: int
    method: str
    predicted_s: float
    measured_s: float
    sent_bytes: int


def emulate(request: PlanRequest, rank: int, *, stored: Stored = Stored.BEFORE) -> Emulation:
    """Run the work of `rank` of `request.sequence_parallel` on this machine, with everything that
    can be rebuilt recomputed, and layer inputs, attention outputs and what is `stored` of those
    that are exchanged on the device. On a processor
    call `memo.measure.exact_malloc` first thing in the process, or the measured peak is that of
    its heap.

    Raises:
        ValueError: for a rank that is none of them, and a request for one rank alone.
        MemoError: for a model that cannot be traced, or whose tokens cannot be shared.
    """
    ranks = request.sequence_parallel
    if ranks == 1:
        raise ValueError("sequence_parallel is 1: a rank to emulate takes 2 or more that share")
    wire = LoneWire.of(rank, ranks)
    model = _built(request)
    _check_shareable(model)
    predictor = Predictor(request, stored=stored)
    swap = predictor.uniform(Placement.RECOMPUTE)
    told = predictor.predictions(swap)
    wrap(model, tile_tokens=swap.tile_tokens)
    runtime_of(model).parallel = Parallel(wire, stored=StoredHere(stored.value), is_agreed=True)
    _step(model, request, _WARM_UP_TOKENS * ranks)
    before = _sent_bytes(wire)
    device = next(model.parameters()).device
    started_s = time.perf_counter()
    with PeakMemory(device) as peak:
        _step(model, request, request.tokens)
    measured_s = time.perf_counter() - started_s
    unwrap(model)
    shares = share_sequence(request.tokens, ranks)
    return Emulation(
        rank=rank,
        ranks=ranks,
        tokens=shares.tokens[rank],
        tile_tokens=swap.tile_tokens,
        predicted_bytes=told.peak_bytes[Tier.DEVICE] - _held_bytes(predictor),
        measured_bytes=peak.growth_bytes,
        method=peak.method,
        predicted_s=told.compute_s,
        measured_s=measured_s,
        sent_bytes=_sent_bytes(wire) - before,
    )


def _held_bytes(predictor: Predictor) -> int:
    """Weights, and the optimizer states that a plan counts and nobody makes here. Masks that the
    first step makes and keeps are no part of it: they are above what is there before.
    """
    states = states_of(predictor.request, predictor.trace, predictor.choice)
    return predictor.trace.parameter_bytes + states.optimizer_bytes


def _built(request: PlanRequest) -> nn.Module:
    device = torch.device(request.node.device_kind)
    auto: Any = AutoModelForCausalLM  # its methods have no types
    # Made where it will be: random numbers for billions of weights take a processor minutes.
    with device:
        model: nn.Module = auto.from_config(request.config, dtype=request.torch_dtype)
    return model.train()


def _check_shareable(model: nn.Module) -> None:
    """As `memo.wrap` does among ranks; here it is not told of any.

    Raises:
        MemoError: for a model whose tokens cannot be shared.
    """
    register()
    samples = samples_of(find_layers(model))
    check_kinds(samples, check_layers(model, samples))
    check_entrance(model, samples)


def _step(model: Any, request: PlanRequest, tokens: int) -> None:
    vocabulary = request.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    ids = torch.randint(0, vocabulary, (request.batch, tokens), device=device)
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    loss.backward()
    model.zero_grad(set_to_none=True)


def _sent_bytes(wire: LoneWire) -> int:
    return sum(count.sent_bytes for count in wire.counts.values())

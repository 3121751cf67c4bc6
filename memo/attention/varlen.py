"""The kernel of torch's `varlen_attn`: all documents of all rows in one call, with their window.

Scope: its arguments for a whole mask. Padding on the right, which sees a document that it is no
part of, is left to the kernels of blocks. torch has the function since 2.10, and all of its
arguments since some release after; before, nothing is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import pairwise

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

from memo.attention.blocks import spans_of
from memo.attention.contracts import BlockInputs
from memo.attention.masks import RangeMask
from memo.attention.recorded import RecordedKernel
from offload import CoreCall, TensorStore

_MODULE = "torch.nn.attention.varlen"

_MAX_LENGTHS = 8
"""A step has one or two masks (windows in some layers), and the next step often the same."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Runs of tokens, those of all rows counted through: queries `[q[i], q[i + 1])` see keys
    `[k[i], k[i + 1])`, and no others.
    """

    q: tuple[int, ...]
    k: tuple[int, ...]

    @classmethod
    def of(cls, mask: RangeMask, batch_size: int) -> Segments:
        """Those of a mask. Padding is two segments, queries without keys and keys without queries:
        kernels write zeros for them, to o and to gradients.
        """
        q, k = [0], [0]

        def pad(stop: int) -> None:
            if q[-1] < stop:
                k.extend((k[-1], stop))
                q.extend((stop, stop))

        for index in range(batch_size):
            first = index * mask.tokens
            for start, stop in spans_of(mask.rows[index % len(mask.rows)], mask):
                pad(first + start)
                q.append(first + stop)
                k.append(first + stop)
        pad(batch_size * mask.tokens)
        return cls(tuple(q), tuple(k))

    @property
    def longest(self) -> int:
        """Tokens of the longest segment; padding counts, or no kernel would come to write it."""
        return max(stop - start for ends in (self.q, self.k) for start, stop in pairwise(ends))


@dataclass(frozen=True, slots=True)
class _Lengths:
    """Segments as a device has them, int32."""

    q: Tensor
    k: Tensor
    longest: int


class VarlenKernel(RecordedKernel):
    """`torch.nn.attention.varlen.varlen_attn` on all rows and tokens of a call.

    It reads the mask, not the block. `attention` is that function unless given; one that is given
    is trusted with tensors of any device and dtype.
    """

    name = "varlen"

    def __init__(self, store: TensorStore, attention: Callable[..., Tensor] | None = None) -> None:
        super().__init__(store)
        self._is_given = attention is not None
        self._attention = attention or _torchs_own()
        self._lengths: dict[tuple[RangeMask, int, torch.device], _Lengths] = {}

    def takes(self, call: CoreCall) -> bool:
        """Whether it can do what is asked, apart from padding on the right; `call` has no dropout,
        soft-capping or sinks.
        """
        q, _, v = call.heads
        if self._attention is None or q.shape[-1] != v.shape[-1]:
            return False
        fits = all(map(is_flat, call.heads))
        return fits and (self._is_given or _flash_takes(call.heads))

    def constants(self, inputs: BlockInputs) -> tuple[Tensor, ...]:
        lengths = self._lengths_of(inputs)
        return lengths.q, lengths.k

    def attend(self, inputs: BlockInputs) -> Tensor:
        assert self._attention is not None
        lengths, mask = self._lengths_of(inputs), inputs.options.mask
        bites = mask.window is not None and mask.window < lengths.longest
        out: Tensor = self._attention(
            *(self.as_saved(t) for t in (inputs.q, inputs.k, inputs.v)),
            lengths.q,
            lengths.k,
            lengths.longest,
            lengths.longest,
            scale=inputs.options.scale,
            # Keys to the left and to the right of a query's own; -1: all.
            window_size=((mask.window or 0) - 1 if bites else -1, 0 if mask.causal else -1),
            enable_gqa=inputs.groups > 1,
        )
        by_row: Tensor = out.unflatten(0, (inputs.q.shape[0], -1))
        return by_row.transpose(1, 2)

    def as_saved(self, o: Tensor) -> Tensor:
        """[batch, heads, tokens, head_dim] as [batch * tokens, heads, head_dim]."""
        return o.transpose(1, 2).flatten(0, 1)

    def _lengths_of(self, inputs: BlockInputs) -> _Lengths:
        device = inputs.q.device
        key = (inputs.options.mask, inputs.q.shape[0], device)
        if key not in self._lengths:
            while len(self._lengths) >= _MAX_LENGTHS:
                del self._lengths[next(iter(self._lengths))]
            segments = Segments.of(inputs.options.mask, inputs.q.shape[0])
            q = _on(device, segments.q)
            k = q if segments.k == segments.q else _on(device, segments.k)
            self._lengths[key] = _Lengths(q, k, segments.longest)
        return self._lengths[key]


def _on(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    # From pinned memory, or the host would wait for the device.
    held = torch.tensor(numbers, dtype=torch.int32, pin_memory=device.type == "cuda")
    return held.to(device, non_blocking=True)


def is_flat(tensor: Tensor) -> bool:
    """Whether rows follow one another, so that [batch, heads, tokens, head_dim] is seen as [batch *
    tokens, heads, head_dim] without a copy (which would be stored beside the tensor).
    """
    rows, _, tokens, _ = tensor.shape
    adjoin = rows == 1 or tensor.stride(0) == tokens * tensor.stride(2)
    return adjoin and tensor.stride(3) == 1


def _torchs_own() -> Callable[..., Tensor] | None:
    # ROCm's flash kernels treat windows and empty segments in ways of their own.
    if torch.version.cuda is None or find_spec(_MODULE) is None:
        return None
    found: Callable[..., Tensor] = import_module(_MODULE).varlen_attn
    needed = {"scale", "window_size", "enable_gqa"}
    return found if needed <= signature(found).parameters.keys() else None


def _flash_takes(heads: tuple[Tensor, ...]) -> bool:
    """Whether torch's flash kernel takes q, k, v and has a backward for them here; it pads no
    heads.
    """
    q, k, v = heads
    if not q.is_cuda or q.shape[-1] % 8:
        return False
    with torch.enable_grad():
        q = q.detach().requires_grad_()  # or only the forward would be asked for
        params = SDPAParams(q, k, v, None, 0.0, False, q.shape[1] != k.shape[1])
        return bool(can_use_flash_attention(params))

"""The fastest kernel for a shape, by trying those that can do it.

Scope: which kernels are tried for a block that all of them have a fast path for (`candidates_for`),
and timing them (`Fastest`). What is remembered, and for which calls this is asked, is `core.py`'s
business.

Times are of forward and backward together, on the call's own tensors, cut to a length at which
quadratic work outweighs all else. The host waits for the device meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend

from memo.attention.blocks import Block
from memo.attention.contracts import BlockInputs, Kernel
from memo.attention.flash import FlashKernel, can_flash
from memo.attention.sdpa import SdpaKernel
from memo.attention.shapes import MAX_TOKENS, Choice
from offload import TensorStore, Tier

_MIN_TOKENS = 1024
"""Below, launching kernels takes longer than running them."""

_REPEATS = 3

MakeKernel = Callable[[TensorStore], Kernel]

Timer = Callable[[Callable[[], None], torch.device], float]
"""How long a run takes on a device, in seconds."""


def candidates_for(q: Tensor) -> Mapping[str, MakeKernel]:
    """The kernels to try for a whole sequence, by name; the first can do whatever any other can.

    Only that one where nothing can be measured, or nothing is to be gained.
    """
    candidates: dict[str, MakeKernel] = {SdpaKernel.name_of(None): SdpaKernel}
    measurable = q.is_cuda and not isinstance(q, FakeTensor) and q.shape[2] >= _MIN_TOKENS
    half = q.dtype in (torch.float16, torch.bfloat16)
    if not (measurable and half):
        return candidates
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        candidates[SdpaKernel.name_of(backend)] = partial(SdpaKernel, backend=backend)
    if can_flash(q):
        candidates[FlashKernel.name] = FlashKernel
    return candidates


def cuda_seconds(run: Callable[[], None], device: torch.device) -> float:
    """The least of several runs, after one that compiles and allocates what it needs."""
    stream = torch.cuda.current_stream(device)
    run()
    times_ms: list[float] = []
    for _ in range(_REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(stream)
        run()
        end.record(stream)
        end.synchronize()
        times_ms.append(start.elapsed_time(end))
    return min(times_ms) / 1e3


@dataclass(frozen=True, slots=True)
class Fastest:
    """Chooses among candidates. `timer` is asked only where there are several."""

    candidates: Callable[[Tensor], Mapping[str, MakeKernel]] = candidates_for
    timer: Timer = cuda_seconds

    def choose(self, inputs: BlockInputs) -> Choice:
        """The fastest for a block that is all of its rows. The first candidate if all fail: the
        call itself then says why.
        """
        candidates = self.candidates(inputs.q)
        first = next(iter(candidates))
        if len(candidates) == 1:
            return Choice(first)
        inputs, times_s, failures = _cut(inputs), dict[str, float](), dict[str, str]()
        for name, make in candidates.items():
            try:
                times_s[name] = self._time(make, inputs)
            except Exception as error:  # noqa: BLE001 - libraries refuse a shape in any way, and it is told
                failures[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Choice(min(times_s, key=times_s.__getitem__, default=first), times_s, failures)

    def _time(self, make: MakeKernel, inputs: BlockInputs) -> float:
        # A store of its own, so that trying does not count as storing.
        kernel = make(TensorStore())

        def run() -> None:
            out, state = kernel.forward(inputs, Tier.DEVICE)
            assert state is not None
            kernel.backward(out, inputs, out, state)

        return self.timer(run, inputs.q.device)


@dataclass(frozen=True, slots=True)
class Remembered(Fastest):
    """Tries what comes again in another core only once: a step that is timed has nothing to try."""

    known: dict[tuple[object, ...], Choice] = field(default_factory=dict)

    def choose(self, inputs: BlockInputs) -> Choice:
        q, k, v = inputs.q, inputs.k, inputs.v
        key = (q.shape, k.shape, v.shape, q.dtype, q.device, inputs.block.causal)
        if key not in self.known:
            self.known[key] = Fastest.choose(self, inputs)
        return self.known[key]


def _cut(inputs: BlockInputs) -> BlockInputs:
    rows, _, tokens, _ = inputs.q.shape
    tokens = min(tokens, MAX_TOKENS)
    rows = min(rows, MAX_TOKENS // tokens)
    q, k, v = (t.detach()[:rows, :, :tokens] for t in (inputs.q, inputs.k, inputs.v))
    block = Block((0, rows), (0, tokens), (0, tokens), inputs.block.causal)
    return replace(inputs, q=q, k=k, v=v, block=block)

"""What ranks send each other in a step: attention's exchange and ring, ZeRO's weights, gradients.

Scope: bytes that one rank sends, and the time of those that compute does not hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from memo.parallel.shares import heads_degree, share_heads
from memo.planning.states import StateChoice
from planner.contracts import Stored
from planner.hardware import Hardware
from planner.swap.contracts import LayerCost, SegmentTimes
from planner.swap.costs import Exchange
from planner.trace import LayerTrace


def layer_config(config: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """What a model's config says of one layer."""
    text = config.get_text_config()
    # Of models whose layers differ, the whole's config refuses to say.
    found: PreTrainedConfig = (
        text.per_layer_config[layer] if getattr(text, "is_heterogeneous", False) else text
    )
    return found


def fewest_heads(config: PreTrainedConfig) -> int:
    """Query heads of the layer with the fewest."""
    layers = int(getattr(config.get_text_config(), "num_hidden_layers", 1) or 1)
    return min(_query_heads(config, layer) for layer in range(layers))


def _query_heads(config: PreTrainedConfig, layer: int) -> int:
    text = layer_config(config, layer)
    # Laguna's layers have each their own number, in a list beside the whole's.
    by_layer = getattr(text, "num_attention_heads_per_layer", None)
    return int(by_layer[layer] if by_layer else getattr(text, "num_attention_heads", 1) or 1)


def exchange_of(
    config: PreTrainedConfig,
    *,
    tokens: int,
    batch: int,
    ranks: int,
    dtype_bytes: int,
    layer: int = 0,
    stored: Stored = Stored.BEFORE,
) -> Exchange:
    """Ulysses' all-to-alls around the core of one `layer` (arXiv 2309.14509, section 3.2), of the
    rank that sends most: the heads of its `tokens` to the ranks that compute them, and to each of
    these its tokens' o. Backward sends o's gradient and what is not `stored` of q, k, v and o
    the same way, and the gradients of q, k and v home.

    With fewer heads than ranks, as many ranks as the heads allow do so, and each passes its k and v
    on round a ring (arXiv 2310.01889): every hop but one both ways, and their gradients in float32
    or wider, all beside the core's compute but for the last gradients, which nothing is left for.
    """
    if ranks == 1:
        return Exchange()
    text = layer_config(config, layer)
    heads = _query_heads(config, layer)
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    degree = heads_degree(ranks, heads)
    messages = _Messages(_head_counts(heads, shared, degree), *_head_dims(text, heads))
    unit, rows = batch * tokens * dtype_bytes, ranks // degree
    # What a rank of a ring has of k and v, for its row's tokens, and of their gradients.
    passed = unit * degree * max(map(messages.kv, range(degree))) if rows > 1 else 0
    gradient = passed * max(dtype_bytes, _WIDE_BYTES) // dtype_bytes
    sent = max(messages.backward(rank, stored) for rank in range(degree))
    return Exchange(
        forward_bytes=unit * max(map(messages.forward, range(degree))),
        backward_bytes=unit * sent + gradient,
        forward_beside_bytes=(rows - 1) * passed,
        backward_beside_bytes=(rows - 1) * passed + max(0, rows - 2) * gradient,
    )


_WIDE_BYTES = 4
"""Of a float32, in which a ring sums gradients of narrower tensors."""

HeadCounts = tuple[tuple[int, int], ...]
"""For every rank of a row its query heads and its kv heads."""


def _head_counts(heads: int, shared: int, degree: int) -> HeadCounts:
    shares = share_heads(heads, shared if heads % shared == 0 else heads, degree)
    return tuple((q[1] - q[0], kv[1] - kv[0]) for q, kv in zip(shares.q, shares.kv, strict=True))


@dataclass(frozen=True, slots=True)
class _Messages:
    """What one rank sends for each of its tokens, in elements; all have as many tokens."""

    counts: HeadCounts
    key_dim: int
    value_dim: int

    def forward(self, rank: int) -> int:
        return self._to_heads(rank, self._qkv) + self._to_tokens(rank, self._o)

    def backward(self, rank: int, stored: Stored) -> int:
        o, qkv = self._to_heads(rank, self._o), self._to_heads(rank, self._qkv)
        again = {Stored.BEFORE: o + qkv, Stored.OUTPUT: qkv, Stored.AFTER: 0}[stored]
        return o + again + self._to_tokens(rank, self._qkv)

    def _qkv(self, rank: int) -> int:
        return self.counts[rank][0] * self.key_dim + self.kv(rank)

    def kv(self, rank: int) -> int:
        """Of k and v alone."""
        return self.counts[rank][1] * (self.key_dim + self.value_dim)

    def _o(self, rank: int) -> int:
        return self.counts[rank][0] * self.value_dim

    def _to_heads(self, rank: int, width: Callable[[int], int]) -> int:
        """To every other rank the heads that it computes."""
        return sum(width(other) for other in range(len(self.counts)) if other != rank)

    def _to_tokens(self, rank: int, width: Callable[[int], int]) -> int:
        """To every other rank the rank's own heads of its tokens."""
        return (len(self.counts) - 1) * width(rank)


def _head_dims(text: PreTrainedConfig, heads: int) -> tuple[int, int]:
    """Of q and k, and of v and o."""
    latent = getattr(text, "qk_head_dim", None)
    plain = getattr(text, "head_dim", None) or int(getattr(text, "hidden_size", 0)) // heads
    return int(latent or plain), int(getattr(text, "v_head_dim", None) or plain)


@dataclass(frozen=True, slots=True)
class Sharing:
    """ZeRO's traffic of one layer among `ranks` (arXiv 1910.02054, section 7): gradients are
    reduced as backward makes them, twice as many bytes where all ranks get them (stage 0); stage 3
    gathers weights before forward and again before backward. It runs beside the layer's compute,
    and what lasts longer than that is waited for.
    """

    hardware: Hardware
    choice: StateChoice
    ranks: int

    def waited(self, trace: LayerTrace, cost: LayerCost) -> LayerCost:
        """The layer's cost with what is waited for."""
        if self.ranks == 1:
            return cost
        gathered = trace.parameter_bytes if self.choice.zero == 3 else 0
        reduced = trace.gradient_bytes * (2 if self.choice.zero == 0 else 1)
        return replace(
            cost,
            forward=self._longer(cost.forward, gathered),
            backward=self._longer(cost.backward, gathered + reduced),
        )

    def _longer(self, times: SegmentTimes, size_bytes: int) -> SegmentTimes:
        link = self.hardware.link_bytes_per_s
        assert link is not None, "several GPUs have a link"
        sent = size_bytes * (self.ranks - 1) / self.ranks
        sending_s = sent / (link * self.hardware.efficiency.link)
        return replace(times, core_s=times.core_s + max(0.0, sending_s - times.total_s))

"""What ranks send each other in a step: attention's exchange, and ZeRO's weights and gradients.

Scope: bytes that one rank sends, and the time of those that compute does not hide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedConfig

from memo.planning.states import StateChoice
from planner.hardware import Hardware
from planner.swap.contracts import LayerCost, SegmentTimes
from planner.swap.costs import Exchange
from planner.trace import LayerTrace


def exchange_of(
    config: PreTrainedConfig, *, tokens: int, batch: int, ranks: int, dtype_bytes: int
) -> Exchange:
    """Ulysses' all-to-alls around one layer's core (arXiv 2309.14509, section 3.2): a rank keeps
    one of `ranks` parts of q, k, v and o of its `tokens`. Backward exchanges q, k, v and o again,
    and o's gradient, and brings back those of q, k and v. Fewer heads than ranks are sent to
    several.
    """
    if ranks == 1:
        return Exchange()
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 1))
    shared = int(getattr(text, "num_key_value_heads", None) or heads)
    key_dim, value_dim = _head_dims(text, heads)
    queries, keys = max(heads, ranks), max(shared, ranks)
    sizes = queries * (key_dim + value_dim) + keys * (key_dim + value_dim)
    sent = batch * tokens * sizes * dtype_bytes * (ranks - 1) // ranks
    return Exchange(forward_bytes=sent, backward_bytes=2 * sent)


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

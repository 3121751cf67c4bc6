"""What one operation costs: floating-point operations, and bytes read and written.

Scope: arithmetic on shapes. Matmuls and convolutions are counted by torch's own formulas
(`torch.utils.flop_counter`); attention is counted here, since torch's formulas take every query to
see every key, and know neither the CPU's kernel nor grouped matmuls. Elementwise work counts no
FLOPs: bytes tell its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.utils.flop_counter import flop_registry

_FORWARD_MATMULS, _BACKWARD_MATMULS = 2, 5
"""q k^T and the weights times v; in backward q k^T again, and four for the gradients (Dao et al.
2022, "FlashAttention", appendix B.2)."""

Arguments = Mapping[str, Any]


def visible_pairs(queries: int, keys: int, *, causal: bool, window: int | None = None) -> int:
    """Pairs of a query and a key that it sees; query i sees keys up to i if `causal`, at most
    `window` back, itself included.
    """
    if not causal:
        return queries * keys
    reach = keys if window is None else min(window, keys)
    full = min(reach, queries)
    return full * (full + 1) // 2 + (queries - full) * reach


def attention_flops(q: Sequence[int], v_head_dim: int, pairs: int, *, backward: bool) -> int:
    """FLOPs of fused attention; `q` is [batch, heads, queries, head_dim].

    Of two forward matmuls one has v's head size, of five backward ones two have.
    """
    batch, heads, _, head_dim = q
    matmuls, of_v = (_BACKWARD_MATMULS, 2) if backward else (_FORWARD_MATMULS, 1)
    per_pair = 2 * ((matmuls - of_v) * head_dim + of_v * v_head_dim)
    return batch * heads * pairs * per_pair


def flops_of(func: OpOverload, args: Sequence[Any], kwargs: Arguments, result: Any) -> int:
    """FLOPs of one call of an operation; 0 for what is no matmul, convolution or attention."""
    packet = func.overloadpacket
    ours = _OURS.get(packet.__name__)
    if ours is not None:
        return ours(_named(func, args, kwargs))
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=result))


def bytes_of(func: OpOverload, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes of all inputs and outputs; 0 for what makes a view, or memory without writing it."""
    if func.is_view or func.overloadpacket.__name__ in _UNTOUCHED:
        return 0
    return sum(t.numel() * t.element_size() for t in (*inputs, *outputs))


_UNTOUCHED = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "set_"}
    | {"_unsafe_view", "_local_scalar_dense", "lift_fresh"}
)


def _named(func: OpOverload, args: Sequence[Any], kwargs: Arguments) -> Arguments:
    schema = func._schema.arguments
    defaults = {a.name: a.default_value for a in schema if a.has_default_value()}
    given = {a.name: value for a, value in zip(schema, args, strict=False)}
    return {**defaults, **given, **kwargs}


def _sdpa(arguments: Arguments, *, backward: bool) -> int:
    q, k, v = (arguments[name] for name in ("query", "key", "value"))
    pairs = visible_pairs(q.shape[2], k.shape[2], causal=bool(arguments["is_causal"]))
    return attention_flops(q.shape, v.shape[-1], pairs, backward=backward)


def _forward(arguments: Arguments) -> int:
    return _sdpa(arguments, backward=False)


def _backward(arguments: Arguments) -> int:
    return _sdpa(arguments, backward=True)


def _flash(arguments: Arguments, *, backward: bool) -> int:
    """Of q as [batch, tokens, heads, head_dim], or as [tokens, heads, head_dim] of sequences one
    behind another, each taken to be as long as the longest but for what is left for the last.
    """
    q, k, v = (arguments[name] for name in ("query", "key", "value"))
    (queries, heads, head_dim), keys = q.shape[-3:], k.shape[-3]
    if arguments["cum_seq_q"] is not None:
        queries, keys = arguments["max_q"], arguments["max_k"]
    back = arguments["window_size_left"]
    see = partial(
        visible_pairs,
        causal=bool(arguments["is_causal"]),
        window=None if back is None or back < 0 else int(back) + 1,
    )
    whole, rest = divmod(q.numel() // (heads * head_dim), queries)
    pairs = whole * see(queries, keys) + see(rest, min(rest, keys))
    return attention_flops((1, heads, queries, head_dim), v.shape[-1], pairs, backward=backward)


def _flash_forward(arguments: Arguments) -> int:
    return _flash(arguments, backward=False)


def _flash_backward(arguments: Arguments) -> int:
    return _flash(arguments, backward=True)


def _grouped(arguments: Arguments) -> int:
    """Rows of one matrix times those of the group that each belongs to: a multiply and an add for
    each row, inner size and column.
    """
    first, second = _pair_of(arguments)
    rows = first.numel() // first.shape[-1]
    return int(2 * rows * first.shape[-1] * second.shape[-1])


def _grouped_backward(arguments: Arguments) -> int:
    return 2 * _grouped(arguments)


def _pair_of(arguments: Arguments) -> tuple[Tensor, Tensor]:
    first = arguments["self"] if "self" in arguments else arguments["input"]
    second = arguments["mat2"] if "mat2" in arguments else arguments["weight"]
    return first, second


_OURS: Mapping[str, Callable[[Arguments], int]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _forward,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _backward,
    "_scaled_dot_product_flash_attention": _forward,
    "_scaled_dot_product_flash_attention_backward": _backward,
    "_scaled_dot_product_cudnn_attention": _forward,
    "_scaled_dot_product_cudnn_attention_backward": _backward,
    "_scaled_dot_product_efficient_attention": _forward,
    "_flash_attention_forward": _flash_forward,
    "_flash_attention_backward": _flash_backward,
    "_grouped_mm": _grouped,
    "grouped_mm_fallback": _grouped,
    "grouped_mm_fallback_backward": _grouped_backward,
}

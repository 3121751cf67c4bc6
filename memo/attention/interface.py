"""The seam into transformers: an attention implementation and its mask function, under a name of
our own.

Scope: what transformers calls. Inside a tile's run (`TileScope`) attention stops the layer or
answers it; elsewhere it is ordinary attention over a `RangeMask`. Every keyword is handled, known
to change nothing, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from memo.attention.contracts import AttentionOptions
from memo.attention.core import attend
from memo.attention.masks import MaskError, RangeMask, range_mask
from offload import Core, CoreCall, MemoError

NAME = "memo"
"""The implementation's name in transformers' registries."""

_INERT = frozenset(
    {
        "sliding_window",  # the mask has it
        "output_hidden_states",
        "output_router_logits",
        "use_cache",
        "cache_position",
        "position_ids",
        "num_items_in_batch",
        "labels",
        "ignore_index",
        "shift_labels",
        "return_dict",
        "logits_to_keep",
        "layer_idx",
        "max_length_q",
        "max_length_k",
        "deterministic",
        "position_embeddings",
        "token_type_ids",
    }
)
"""Keywords that models pass through to attention and that change nothing in what it computes."""


class SplitError(MemoError):
    """A layer that cannot be cut at attention."""


class _Stop(BaseException):
    """Unwinds a layer's forward once attention has been reached; no `except Exception` of a
    model may catch it.
    """


@dataclass(slots=True)
class TileScope:
    """One run of one tile: without an answer it stops at attention, with one it goes on.

    `answer`: [batch, tile tokens, heads, head_dim]; `total_tokens` are those of the whole sequence.
    """

    total_tokens: int
    answer: Tensor | None = None
    call: CoreCall | None = None

    def reach(self, call: CoreCall) -> Tensor:
        if self.call is not None:
            raise SplitError("the layer calls attention more than once")
        self.call = call
        if self.answer is None:
            raise _Stop
        return self.answer

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Run a layer inside; the stop is caught here."""
        token = _TILE.set(self)
        try:
            yield
        except _Stop as stop:
            # Its frames hold the tile's tensors, and from Python 3.12 on one of them holds it.
            stop.__traceback__ = None
        finally:
            _TILE.reset(token)
        if self.call is None:
            raise SplitError("the layer does not call transformers' attention interface")


@dataclass(slots=True)
class Seam:
    """What attention knows of the model whose forward is running."""

    core: Core
    position_ids: Tensor | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        token = _SEAM.set(self)
        try:
            yield
        finally:
            _SEAM.reset(token)


_TILE: ContextVar[TileScope | None] = ContextVar("memo_tile", default=None)
_SEAM: ContextVar[Seam | None] = ContextVar("memo_seam", default=None)


def register() -> None:
    """Make the implementation known to transformers, for all models; only configs that name it
    use it.
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: RangeMask | Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **keywords: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: q, k, v as [batch, heads, tokens, head_dim]; o as [batch,
    tokens, heads, d].

    Raises:
        SplitError: for a keyword that it doesn't know, or one that asks for attention weights.
        MaskError: for a mask that is no `RangeMask`.
    """
    _refuse_unknown(module, keywords)
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    options = AttentionOptions(
        mask=_checked_mask(attention_mask, causal, query.shape[2]),
        scale=scaling if scaling is not None else float(query.shape[-1]) ** -0.5,
        dropout=float(dropout),
        softcap=softcap,
    )
    call = CoreCall(
        heads=(query, key, value), extras=() if s_aux is None else (s_aux,), options=options
    )
    tile = _TILE.get()
    if tile is not None:
        return tile.reach(call), None
    return attend(current_seam().core, call), None


def _refuse_unknown(module: nn.Module, keywords: dict[str, Any]) -> None:
    asked = {name for name, value in keywords.items() if value is not None and value is not False}
    if "output_attentions" in asked:
        raise SplitError(
            "output_attentions=True needs the matrix of weights, which memo never makes"
        )
    if "cu_seq_lens_q" in asked or "cu_seq_lens_k" in asked:
        raise SplitError("pass packed documents as position_ids that restart, not as cu_seq_lens")
    unknown = sorted(asked - _INERT)
    if unknown:
        raise SplitError(
            f"{type(module).__name__} passes attention keywords unknown to memo: {unknown}"
        )


def _checked_mask(mask: RangeMask | Tensor | None, causal: bool, tokens: int) -> RangeMask:
    if mask is None:  # a model that makes no mask leaves it to `is_causal`, as under SDPA
        tile = _TILE.get()
        return RangeMask.full(tokens if tile is None else tile.total_tokens, causal=causal)
    if isinstance(mask, RangeMask):
        return mask
    raise MaskError(
        f"memo takes 2-D padding masks and position_ids that restart, not a mask of shape "
        f"{tuple(mask.shape)}"
    )


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., object] | None = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    **_: Any,
) -> RangeMask:
    """transformers' mask signature; returns ranges, which the models hand on to `attention` as they
    are.

    Raises:
        MaskError: for masks that are no ranges, and for generation with a cache.
    """
    if use_vmap or mask_function is None:
        raise MaskError("a mask function of the caller's own cannot be read as ranges")
    if q_length != kv_length or int(q_offset) or int(kv_offset):
        raise MaskError("memo's attention is for whole sequences, not for a cache")
    return range_mask(
        mask_function,
        batch_size=batch_size,
        tokens=q_length,
        padding=attention_mask,
        position_ids=current_seam().position_ids,
    )


def current_seam() -> Seam:
    """The seam of the wrapped forward that is running.

    Raises:
        MemoError: when none is.
    """
    seam = _SEAM.get()
    if seam is None:
        raise MemoError(
            f"attention implementation {NAME!r} belongs to a wrapped model's forward; choose"
            f" another for this model"
        )
    return seam

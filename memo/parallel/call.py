"""One call of a wrapped model over ranks: every rank is given the whole batch, runs the model on
its share, and returns what one process would.

Scope: what stands around the model's own forward. Everything is told from the arguments, which all
ranks have whole; nothing is agreed on by messages but that they have the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memo.attention.interface import Seam
from memo.parallel.agreement import check_same_batch, check_same_call, check_same_settings
from memo.parallel.batch import IGNORED, shift_labels, split_batch, total_tokens
from memo.parallel.contracts import Stored
from memo.parallel.core import ParallelCore
from memo.parallel.loss_seam import ParallelLoss, check_causal
from memo.parallel.outputs import make_whole
from memo.parallel.rotary import growing_tables, made_for
from memo.parallel.shares import share_sequence
from memo.parallel.view import SequenceView
from memo.parallel.wire import Wire
from offload import Core, MemoError, TensorStore

_LOGITS_TO_KEEP = ("logits_to_keep", "num_logits_to_keep")


@dataclass(slots=True)
class Parallel:
    """What the calls of a wrapped model over ranks have in common.

    `settings` must be the same on all ranks; `pads_move_positions`: the model counts positions from
    a padding mask where it is given none; `stored`: what attention's backward finds in the store.
    """

    wire: Wire
    settings: Mapping[str, object] = field(default_factory=dict)
    pads_move_positions: bool = False
    stored: Stored = Stored.BEFORE
    is_agreed: bool = False

    def agree(self, model: nn.Module, arguments: Mapping[str, Any]) -> None:
        """Are all ranks of the group about to do the same? In a first call it is compared whole,
        later by what tells in 16 bytes.

        Raises:
            MemoError: on every rank, when they are not.
        """
        group, device = self.wire.group, next(model.parameters()).device
        now = {"training": model.training, "gradients": torch.is_grad_enabled()}
        if self.is_agreed:
            check_same_call(arguments, now, self.wire, device)
            return
        check_same_settings({**self.settings, **now, "device": device.type}, group)
        check_same_batch(arguments, group)
        self.is_agreed = True


@dataclass(frozen=True, slots=True)
class ParallelCall:
    """`arguments` are the model's for this rank's tokens; run it inside `installed`, under `seam`,
    and hand what it returns to `whole`.
    """

    model: nn.Module
    core: ParallelCore
    arguments: Mapping[str, Any]
    loss: ParallelLoss | None
    last_position: Tensor
    as_tuple: bool

    @property
    def seam(self) -> Seam:
        """What attention knows: the core over ranks, and the positions of own tokens."""
        return Seam(self.core, self.arguments["position_ids"])

    @contextmanager
    def installed(self) -> Iterator[None]:
        """The model's loss, and tables that follow the sequence's length, are of all tokens."""
        with ExitStack() as stack:
            stack.enter_context(made_for(growing_tables(self.model), self.last_position))
            if self.loss is not None:
                stack.enter_context(self.loss.installed(self.model))
            yield

    def whole(self, output: Any) -> Any:
        """What one process would have returned.

        Raises:
            MemoError: for a loss or an output that is not that of the whole, and cannot be made
                so.
        """
        if not hasattr(output, "to_tuple"):
            raise MemoError(
                f"{type(self.model).__name__} returns a {type(output).__name__}: under sequence "
                "parallelism memo takes transformers' model outputs"
            )
        if self.loss is not None:
            self.loss.check_used(self.model, getattr(output, "loss", None))
        make_whole(output, self.core)
        return output.to_tuple() if self.as_tuple else output


def open_call(
    parallel: Parallel,
    model: nn.Module,
    arguments: Mapping[str, Any],
    core: Core,
    store: TensorStore,
) -> ParallelCall:
    """The call of `model` with these arguments, on which ranks of the group have agreed.

    Raises:
        MemoError: for what cannot be shared among ranks.
    """
    _refuse(arguments, parallel.wire.group.size)
    view = _view(arguments, parallel)
    if parallel.pads_move_positions and view.is_padded_left:
        _refuse_moved_positions(arguments, model)
    as_tuple = not _or_config(arguments, model, "return_dict", default=True)
    return ParallelCall(
        model,
        ParallelCore(core, store, parallel.wire, view, stored=parallel.stored),
        _own(arguments, view, as_tuple=as_tuple),
        _loss(arguments, view, model, parallel.wire),
        _last_position(arguments, view),
        as_tuple,
    )


def _refuse(arguments: Mapping[str, Any], ranks: int) -> None:
    tokens = total_tokens(arguments)
    if tokens < ranks:
        raise MemoError(
            f"{tokens} tokens for sequence_parallel={ranks}: takes a token a rank at least"
        )
    mask = arguments.get("attention_mask")
    if mask is not None and not isinstance(mask, Tensor):
        raise MemoError(
            f"attention_mask is a {type(mask).__name__}: under sequence parallelism memo takes 2-D "
            "padding masks ([batch, tokens])"
        )
    for name in _LOGITS_TO_KEEP:
        kept = arguments.get(name)
        if isinstance(kept, Tensor) or kept:
            raise MemoError(
                f"{name}={kept!r} counts tokens of the whole sequence, and under sequence "
                "parallelism each rank has a share; leave it out, and cut the outputs"
            )


def _view(arguments: Mapping[str, Any], parallel: Parallel) -> SequenceView:
    group, tokens = parallel.wire.group, total_tokens(arguments)
    like = next(v for n in ("input_ids", "inputs_embeds") if (v := arguments.get(n)) is not None)
    return SequenceView.of(
        group,
        share_sequence(tokens, group.size),
        batch_size=like.shape[0],
        attention_mask=arguments.get("attention_mask"),
        position_ids=arguments.get("position_ids"),
    )


def _refuse_moved_positions(arguments: Mapping[str, Any], model: nn.Module) -> None:
    if arguments.get("position_ids") is None:
        raise MemoError(
            f"{type(model).__name__} counts positions from the padding mask: under sequence "
            "parallelism pass position_ids, or pad on the right"
        )


def _own(arguments: Mapping[str, Any], view: SequenceView, *, as_tuple: bool) -> dict[str, Any]:
    """This rank's arguments. The padding mask is left out: attention knows of padding from the
    view, and whatever else a model would count by it (router losses do) is not of own tokens.
    """
    own = split_batch(arguments, view, ignore_index=_ignore_index(arguments))
    if "shift_labels" not in arguments:
        own.pop("shift_labels", None)  # `ParallelLoss` has them, and not every model takes them
    if as_tuple:
        own["return_dict"] = True
    own.pop("attention_mask", None)
    return own


def _loss(
    arguments: Mapping[str, Any], view: SequenceView, model: nn.Module, wire: Wire
) -> ParallelLoss | None:
    labels, shifted = arguments.get("labels"), arguments.get("shift_labels")
    if labels is None:
        return None
    check_causal(model)
    if shifted is None:
        shifted = shift_labels(labels, _ignore_index(arguments))
    return ParallelLoss(wire, view, shifted, arguments.get("num_items_in_batch"))


def _ignore_index(arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("ignore_index", IGNORED))


def _last_position(arguments: Mapping[str, Any], view: SequenceView) -> Tensor:
    positions = arguments.get("position_ids")
    if positions is None:
        return torch.tensor(view.shares.total_tokens - 1)
    last: Tensor = positions.max()
    return last


def _or_config(arguments: Mapping[str, Any], model: nn.Module, name: str, *, default: bool) -> bool:
    """An argument that a model's config stands in for."""
    asked = arguments.get(name)
    return bool(getattr(model.config, name, default) if asked is None else asked)

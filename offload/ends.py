"""The two ends of a graph that lives on without holding the tensors that went in or came out.

Scope: `inlet`, which delivers a gradient to a sink, and `Outlet`, from which backward starts later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

Sink = Callable[[Tensor], None]


class _Inlet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, anchor: Tensor, value: Tensor, sink: Sink
    ) -> Tensor:
        ctx.sink = sink  # type: ignore[attr-defined]
        return value.view_as(value)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[None, None, None]:
        ctx.sink(grads[0])  # type: ignore[attr-defined]
        return None, None, None


class _Outlet(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, value: Tensor, slot: list[Tensor]
    ) -> Tensor:
        ctx.slot = slot  # type: ignore[attr-defined]
        return value.new_zeros(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.slot.pop(), None  # type: ignore[attr-defined]


def inlet(value: Tensor, sink: Sink) -> Tensor:
    """`value` as the start of a graph: its gradient is given to `sink`, and the graph does not hold
    its storage.

    (A leaf's AccumulateGrad node would.)
    """
    anchor = torch.zeros((), requires_grad=True, device=value.device)
    result: Tensor = _Inlet.apply(anchor, value, sink)  # type: ignore[no-untyped-call]
    return result


def is_inlet(node: Node) -> bool:
    """Whether a graph's node is an inlet's, which holds no tensors."""
    return isinstance(node, _Inlet._backward_cls)


@dataclass(slots=True)
class Outlet:
    """The end of a graph, which can be run backward later without its output being held.

    A handle of no size stands in for the output; `backward` accepts such handles in every torch
    that we support, while gradient edges as roots are newer.
    """

    handle: Tensor
    slot: list[Tensor]

    @classmethod
    def of(cls, value: Tensor) -> Outlet | None:
        """None when `value` is not part of a graph."""
        if not value.requires_grad:
            return None
        slot: list[Tensor] = []
        return cls(_Outlet.apply(value, slot), slot)  # type: ignore[no-untyped-call]


def run_backward(
    outlets: Iterable[Outlet | None], grads: Iterable[Tensor | None], *, keep_graph: bool
) -> None:
    """Run the graphs behind `outlets` backward; those without an outlet or a gradient take no
    part.
    """
    roots = []
    for outlet, grad in zip(outlets, grads, strict=True):
        if outlet is not None and grad is not None:
            outlet.slot[:] = [grad]
            roots.append(outlet.handle)
    if roots:
        ones = [torch.ones_like(root) for root in roots]
        torch.autograd.backward(roots, ones, retain_graph=keep_graph)

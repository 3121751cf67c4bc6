"""A wrapped model's forward: whether this call is ours, and if so everything that it needs, put in
place and taken back.

Scope: deciding, and installing for the time of one call. While no call runs, nothing of the model
is changed but the `forward` attribute itself, whose signature is the original's, and what DeepSpeed
is told of layers (`zero.py`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from memo.attention.interface import Seam
from memo.loss.seam import LossSeam
from memo.parallel.call import open_call
from memo.positions import CACHES
from memo.runtime import Runtime
from memo.warning import warn_once
from offload import MemoError


class Entry:
    """Takes the place of `model.forward` (an instance attribute, so that other models of the
    class are untouched).
    """

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        self.model, self.runtime = model, runtime
        self.before = model.__dict__.get("forward")
        # Trainers read the signature to tell which columns of a data set the model takes.
        functools.update_wrapper(self, self.original, assigned=("__name__", "__doc__"), updated=())

    @property
    def original(self) -> Callable[..., Any]:
        """The forward that was there."""
        return self.before or partial(type(self.model).forward, self.model)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return self.original

    @__wrapped__.setter
    def __wrapped__(self, value: Callable[..., Any]) -> None:
        """`update_wrapper` sets it; it is derived, so that a deep copy of the model is bound to
        the copy.
        """

    def install(self) -> None:
        self.model.__dict__["forward"] = self

    def remove(self) -> None:
        del self.model.__dict__["forward"]
        if self.before is not None:
            self.model.__dict__["forward"] = self.before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.model:
            # Accelerate, taking its mixed precision off, binds what stood here to the model.
            args = args[1:]
        if self.runtime.is_removed or self.runtime.thread.is_inside:
            return self.original(*args, **kwargs)
        arguments = self._named(args, kwargs)
        if not self._is_ours(arguments):
            return self.original(*args, **kwargs)
        # First, for what one rank alone refuses would leave the others waiting.
        if self.runtime.parallel is not None:
            self.runtime.parallel.agree(self.model, arguments)
        self._refuse(arguments)
        if arguments.get("use_cache"):
            warn_once(self.runtime, "use_cache=True was asked for in training: memo has no cache")
        if "use_cache" in self._parameters and "use_cache" not in self._positional(args):
            kwargs["use_cache"] = False
        if self.runtime.parallel is not None:
            return self._over_ranks({**arguments, **kwargs})
        with self._installed(arguments, Seam(self.runtime.core, arguments.get("position_ids"))):
            return self.original(*args, **kwargs)

    def _over_ranks(self, arguments: dict[str, Any]) -> Any:
        runtime = self.runtime
        assert runtime.parallel is not None
        call = open_call(runtime.parallel, self.model, arguments, runtime.core, runtime.store)
        with self._installed(call.arguments, call.seam), call.installed():
            output = self.original(**call.arguments)
        return call.whole(output)

    # ---- deciding ----

    @functools.cached_property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(type(self.model).forward).parameters

    def _positional(self, args: tuple[Any, ...]) -> list[str]:
        return [name for name in self._parameters if name != "self"][: len(args)]

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self._positional(args), args, strict=False)), **kwargs}

    def _is_ours(self, arguments: dict[str, Any]) -> bool:
        """Training, and evaluation with labels; not generation, and nothing that works with a
        cache.
        """
        if any(arguments.get(name) is not None for name in CACHES):
            if torch.is_grad_enabled() and self.model.training:
                warn_once(
                    self.runtime, "a call with past_key_values ran unwrapped: memo has no cache"
                )
            return False
        if arguments.get("labels") is not None or arguments.get("shift_labels") is not None:
            return True
        asked = self.model.training or arguments.get("use_cache") is False
        return torch.is_grad_enabled() and asked

    def _refuse(self, arguments: dict[str, Any]) -> None:
        if self.runtime.switch.is_on:
            raise MemoError(
                "a wrapped model runs in one thread at a time, and a backward is running"
            )
        config = getattr(self.model, "config", None)
        asked = arguments.get("output_attentions")
        if asked or (asked is None and getattr(config, "output_attentions", False)):
            raise MemoError(
                "output_attentions=True needs the matrix of attention weights, which memo "
                "never makes; "
                "unwrap the model for this call"
            )
        mask = arguments.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim != 2 and self.runtime.has_tiled:
            raise MemoError(
                f"attention_mask of shape {tuple(mask.shape)}: memo takes 2-D padding masks "
                f"([batch, tokens]), and "
                "position_ids that restart for packed documents"
            )

    # ---- installing ----

    @contextmanager
    def _installed(self, arguments: Mapping[str, Any], seam: Seam) -> Iterator[None]:
        runtime = self.runtime
        with ExitStack() as stack:
            stack.enter_context(runtime.thread.entered())
            if runtime.switch.is_checkpointing_asked:
                warn_once(
                    runtime,
                    "gradient checkpointing is enabled on this wrapped model: memo rebuilds "
                    "activations already, so it "
                    "is ignored",
                )
            stack.enter_context(runtime.switch.on())
            stack.enter_context(seam.entered())
            stack.enter_context(self._layers_installed())
            loss = self._loss_seam(arguments)
            if loss is not None:
                stack.enter_context(loss.installed())
            yield

    @contextmanager
    def _layers_installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            runtime = self.runtime
            for layer in runtime.layers:
                stack.enter_context(_forward_set(layer.module, partial(runtime.run_layer, layer)))
            for norm in runtime.norms:
                stack.enter_context(_forward_set(norm, partial(runtime.run_norm, norm)))
            yield

    def _loss_seam(self, arguments: Mapping[str, Any]) -> LossSeam | None:
        labels = arguments.get("labels")
        labels = arguments.get("shift_labels") if labels is None else labels
        if not self.runtime.options.tiled_loss or labels is None:
            return None
        seam = LossSeam.of(self.model, partial(_materialised, self.runtime))
        if seam is None:
            warn_once(
                self.runtime,
                f"{type(self.model).__name__} has a loss that memo does not tile: logits are whole",
            )
        return seam


def _materialised(runtime: Runtime, why: str) -> None:
    warn_once(runtime, f"logits were made whole for {why!r}; without it the loss runs tile by tile")


@contextmanager
def _forward_set(module: nn.Module, ours: Callable[..., Any]) -> Iterator[None]:
    """`module.forward` is `ours` with the original forward as first argument."""
    attributes, original = module.__dict__, module.forward
    before = {"forward": attributes["forward"]} if "forward" in attributes else {}
    attributes["forward"] = partial(ours, original)
    try:
        yield
    finally:
        del attributes["forward"]
        attributes.update(before)

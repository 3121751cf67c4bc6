"""A Hugging Face decoder layer as the runtime's `SplitLayer`: its own forward, run on one tile.

Scope: cutting the arguments of a layer's call into tiles, running the layer's forward on other
parameters, and catching what its submodules report beside (router logits). Nothing of any model
family stands here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.utils import output_capturing

from memo.attention.interface import SplitError, TileScope
from memo.modules import PlainForward
from memo.positions import TokensBefore, positions_argument
from memo.switch import Switch
from offload import CoreCall, Tile, TileOutput


@dataclass(frozen=True, slots=True)
class LayerArguments:
    """The arguments of one call of a layer, x apart."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    total_tokens: int

    def tile(self, tile: Tile) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments for one tile: tensors with a token dim are cut, all else stays."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda t: self._cut(t, tile), (self.args, self.kwargs)
        )
        return args, kwargs

    def _cut(self, tensor: Tensor, tile: Tile) -> Tensor:
        dim = self._token_dim(tensor)
        return tensor if dim is None else tensor.narrow(dim, tile.start, tile.tokens)

    def _token_dim(self, tensor: Tensor) -> int | None:
        # Vectors per token ([..., tokens, size]: rotary tables, inputs per layer) have tokens
        # second to last; numbers per token ([..., tokens]: positions) have them last. The
        # self-check finds layers that do otherwise.
        vectors = tensor.is_floating_point() or tensor.is_complex()
        for dim in (-2, -1) if vectors else (-1, -2):
            if tensor.ndim >= -dim and tensor.shape[dim] == self.total_tokens:
                return dim
        return None

    def tensors(self) -> list[Tensor]:
        return [
            leaf
            for leaf in pytree.tree_leaves((self.args, self.kwargs))
            if isinstance(leaf, Tensor)
        ]


@dataclass(slots=True)
class HFLayer:
    """One call of a decoder layer, as `offload.SplitLayer`.

    `collects` names what `transformers` captures from submodules during this forward
    ("router_logits"): captured per tile it becomes an auxiliary output, `flat` where it came as
    [batch * tokens, ...]. `first_token`: where the call's tokens begin in the sequence.
    """

    layer: nn.Module
    arguments: LayerArguments
    switch: Switch
    collects: tuple[str, ...] = ()
    first_token: int = 0
    flat: dict[str, bool] = field(default_factory=dict)
    tuple_length: int | None = None
    params: Mapping[str, Tensor] = field(init=False)
    constants: Sequence[Tensor] = field(init=False)
    _plain: PlainForward = field(init=False)
    _positions: str | None = field(init=False)

    def __post_init__(self) -> None:
        # Read at each call: engines such as FSDP2 swap the parameter objects.
        self.params = dict(self.layer.named_parameters())
        self.constants = (*self.layer.buffers(), *self.arguments.tensors())
        self._plain = PlainForward(self.layer)
        self._positions = positions_argument(self.layer)

    def backward_scope(self) -> AbstractContextManager[None]:
        """See `offload.SplitLayer`."""
        return self.switch.on()

    def pre(self, x: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> CoreCall:
        """See `offload.SplitLayer`.

        Raises:
            SplitError: when the layer does not reach the attention interface once.
        """
        scope = TileScope(self.arguments.total_tokens)
        with scope.entered(), _capturing(()):
            self._forward(x, tile, params)
        assert scope.call is not None
        return scope.call

    def run(self, x: Tensor, o: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> TileOutput:
        """See `offload.SplitLayer`."""
        scope = TileScope(self.arguments.total_tokens, answer=o)
        with scope.entered(), _capturing(self.collects) as captured:
            output = self._forward(x, tile, params)
        assert scope.call is not None
        y = first_tensor(output)
        self.tuple_length = len(output) if isinstance(output, tuple) else None
        return TileOutput(
            y=y, aux=self._auxiliary(captured, x.shape[0], tile.tokens), call=scope.call
        )

    def _forward(self, x: Tensor, tile: Tile, params: Mapping[str, Tensor]) -> Any:
        args, kwargs = self.arguments.tile(tile)
        if self._positions is not None:
            kwargs[self._positions] = TokensBefore(self.first_token + tile.start)
        with self.switch.on():
            return self._plain.with_params(params, x, *args, **kwargs)

    def _auxiliary(
        self, captured: dict[str, list[Tensor]], batch: int, tokens: int
    ) -> dict[str, Tensor]:
        aux = {}
        for name, tensors in captured.items():
            for index, tensor in enumerate(tensors):
                key = f"{name}.{index}"
                self.flat[key] = tensor.shape[:2] != (batch, tokens) or tensor.ndim < 3
                if self.flat[key] and tensor.shape[0] != batch * tokens:
                    raise SplitError(f"{name} of shape {tuple(tensor.shape)} is not per token")
                aux[key] = (
                    tensor.view(batch, tokens, *tensor.shape[1:]) if self.flat[key] else tensor
                )
        return aux

    def output(self, y: Tensor) -> Any:
        """`y` in the form that the layer itself returns."""
        return y if self.tuple_length is None else (y, *[None] * (self.tuple_length - 1))

    def report_auxiliary(self, aux: Mapping[str, Tensor]) -> None:
        """Hand whole auxiliary outputs to transformers' collector, as the layer's own modules
        would have.
        """
        collector = output_capturing._active_collector.get()
        for key, tensor in aux.items():
            whole = tensor.flatten(0, 1) if self.flat[key] else tensor
            collector[key.split(".")[0]].append(whole)


def collected_names() -> tuple[str, ...]:
    """What transformers captures from the submodules of layers in the running forward."""
    collector = output_capturing._active_collector.get() or {}
    return tuple(name for name in collector if name != "hidden_states" and not name.startswith("_"))


@contextmanager
def _capturing(names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    captured: dict[str, list[Tensor]] = {name: [] for name in names}
    token = output_capturing._active_collector.set(captured if names else None)
    try:
        yield captured
    finally:
        output_capturing._active_collector.reset(token)


def first_tensor(output: Any) -> Tensor:
    """A layer's hidden states: the output itself, or the one tensor of a tuple.

    Raises:
        SplitError: when the layer returns other tensors beside.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output[1:])):
            raise SplitError("the layer returns more tensors than its hidden states")
        return output[0]
    raise SplitError(f"the layer returns a {type(output).__name__}")

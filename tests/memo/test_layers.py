"""A layer's arguments cut into tiles, and its forward stopped, answered and run on one tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memo.attention.interface import SplitError
from memo.attention.interface import attention as attend
from memo.layers import HFLayer, LayerArguments, first_tensor
from memo.switch import Switch
from offload import Tile

TOKENS = 11
TILE = Tile(1, 4, 8)


def _cut(tensor: Tensor) -> Tensor:
    (args, _) = LayerArguments((tensor,), {}, TOKENS).tile(TILE)
    found: Tensor = args[0]
    return found


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ((2, TOKENS, 8), 1),  # hidden states, rotary tables
        ((TOKENS, 8), 0),
        ((2, 3, TOKENS, 8), 2),
        ((2, TOKENS, TOKENS), 1),  # tokens are second to last for vectors
        ((2, 7, TOKENS), 2),
        ((TOKENS,), 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_vectors_are_cut_at_their_tokens(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype
) -> None:
    tensor = torch.randn(shape, dtype=dtype)
    assert torch.equal(_cut(tensor), tensor.narrow(dim, 4, 4))


@pytest.mark.parametrize(("shape", "dim"), [((2, TOKENS), 1), ((3, 1, TOKENS), 2), ((TOKENS,), 0)])
def test_numbers_are_cut_at_their_tokens(shape: tuple[int, ...], dim: int) -> None:
    tensor = torch.randint(0, 99, shape)
    assert torch.equal(_cut(tensor), tensor.narrow(dim, 4, 4))
    per_token = torch.randint(0, 99, (TOKENS, TOKENS))
    assert torch.equal(_cut(per_token), per_token[:, 4:8])


def test_all_else_stays() -> None:
    for tensor in (torch.randn(2, 7, 8), torch.tensor(3.0), torch.randn(TOKENS + 1)):
        assert _cut(tensor) is tensor
    nested = {"tables": (torch.randn(1, TOKENS, 4), [torch.arange(TOKENS)]), "flag": True}
    arguments = LayerArguments(("text",), {"deep": nested, "none": None}, TOKENS)
    args, kwargs = arguments.tile(TILE)
    assert args == ("text",)
    assert kwargs["none"] is None
    assert kwargs["deep"]["flag"] is True
    assert kwargs["deep"]["tables"][0].shape == (1, 4, 4)
    assert kwargs["deep"]["tables"][1][0].tolist() == [4, 5, 6, 7]
    assert nested["tables"][0].shape == (1, TOKENS, 4)  # type: ignore[index]
    assert len(arguments.tensors()) == 2


class _Layer(nn.Module):
    """Norm, attention with two heads, and an MLP; `after` may do something odd."""

    def __init__(self, after: Callable[[nn.Module, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 6)
        self.table = nn.Buffer(torch.ones(3))
        self.after = after
        self.reached = 0

    def forward(self, x: Tensor, shift: Tensor) -> Any:
        heads = (x + shift).matmul(self.qkv.weight.T).unflatten(-1, (3, 2, 3)).movedim(2, 0)
        q, k, v = (head.transpose(1, 2) for head in heads)
        o, _ = attend(self, q, k, v, None, scaling=0.5)
        self.reached += 1
        y = x + self.out(o.flatten(2))
        return y if self.after is None else self.after(self, y)


def _split(layer: nn.Module) -> tuple[HFLayer, Tensor, dict[str, Tensor]]:
    shift = torch.randn(1, TOKENS, 6)
    split = HFLayer(layer, LayerArguments((shift,), {}, TOKENS), Switch.of(layer, attention=True))
    return split, shift[:, 4:8], dict(split.params)


def test_pre_stops_at_attention() -> None:
    layer = _Layer()
    split, shift, params = _split(layer)
    x = torch.randn(2, 4, 6)
    call = split.pre(x, TILE, params)
    assert layer.reached == 0
    want = (x + shift) @ layer.qkv.weight.T
    assert torch.equal(call.heads[0], want[..., :6].unflatten(2, (2, 3)).transpose(1, 2))
    mask: Any = call.options
    assert mask.mask.tokens == TOKENS  # of the whole sequence, not of the tile
    assert mask.scale == 0.5


def test_run_goes_on_with_the_answer_and_other_parameters() -> None:
    layer = _Layer()
    split, _, params = _split(layer)
    x, o = torch.randn(2, 4, 6), torch.randn(2, 4, 2, 3)
    doubled = {name: param * 2 for name, param in params.items()}
    output = split.run(x, o, TILE, doubled)
    want = x + 2 * nn.functional.linear(o.flatten(2), layer.out.weight, layer.out.bias)
    assert torch.allclose(output.y, want, atol=1e-6)
    assert (output.aux, layer.reached) == ({}, 1)
    assert torch.allclose(output.call.heads[2], 2 * split.pre(x, TILE, params).heads[2], atol=1e-5)


def test_hooks_do_not_run_once_per_tile() -> None:
    layer = _Layer()
    layer.register_forward_hook(lambda *_: pytest.fail("a hook of the layer ran on a tile"))
    split, _, params = _split(layer)
    split.run(torch.randn(2, 4, 6), torch.randn(2, 4, 2, 3), TILE, params)


def test_buffers_and_arguments_are_constants() -> None:
    layer = _Layer()
    split, _, _ = _split(layer)
    held = {tensor.data_ptr() for tensor in split.constants}
    assert layer.table.data_ptr() in held
    assert len(held) == 2


def test_a_tuples_form_is_kept() -> None:
    split, _, params = _split(_Layer(lambda layer, y: (y, None)))
    split.run(torch.randn(2, 4, 6), torch.randn(2, 4, 2, 3), TILE, params)
    whole = torch.randn(2, TOKENS, 6)
    assert split.output(whole) == (whole, None)


def test_layers_that_cannot_be_cut_are_refused() -> None:
    def twice(layer: nn.Module, y: Tensor) -> Tensor:
        q = y.unflatten(-1, (2, 3)).transpose(1, 2)
        return attend(layer, q, q, q, None)[0].flatten(2)

    x, o = torch.randn(2, 4, 6), torch.randn(2, 4, 2, 3)
    split, _, params = _split(_Layer(twice))
    with pytest.raises(SplitError, match="more than once"):
        split.run(x, o, TILE, params)

    class Plain(nn.Linear):
        def forward(self, input: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(input)

    split, _, params = _split(Plain(6, 6))
    for run in (lambda: split.pre(x, TILE, params), lambda: split.run(x, o, TILE, params)):
        with pytest.raises(SplitError, match="does not call"):
            run()


def test_an_output_must_be_hidden_states_alone() -> None:
    y = torch.randn(2)
    assert first_tensor(y) is y
    assert first_tensor((y, None, ())) is y
    with pytest.raises(SplitError, match="more tensors"):
        first_tensor((y, [y]))
    for odd in ({"y": y}, (None, y), None):
        with pytest.raises(SplitError, match="returns a"):
            first_tensor(odd)

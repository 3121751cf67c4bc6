"""The self-check on synthetic layers: each way of mixing tokens is found, and honest ones pass."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from memo.attention.interface import NAME
from memo.attention.interface import attention as attend
from memo.attention.masks import RangeMask
from memo.check import check_layers, is_tokenwise
from memo.contracts import LayerMode
from offload import MemoError

WIDTH = 6
Extra = Callable[["_Layer", Tensor], Tensor]


class _Layer(nn.Module):
    """Attention and an MLP, with something more before (`first`) and after (`last`) attention."""

    def __init__(self, config: Any, first: Extra | None = None, last: Extra | None = None) -> None:
        super().__init__()
        self.config, self.first, self.last = config, first, last
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.kernel = nn.Parameter(0.02 * torch.randn(WIDTH, 1, 3))

    def forward(self, hidden_states: Tensor, mask: Any = None) -> Any:
        x = hidden_states if self.first is None else self.first(self, hidden_states)
        x = hidden_states + self.attend(x, mask)
        y = x + torch.tanh(self.mlp(x))
        return y if self.last is None else self.last(self, y)

    def attend(self, x: Tensor, mask: Any = None) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        q, k, v = heads
        if self.config._attn_implementation_internal == NAME:
            return attend(self, q, k, v, mask)[0].flatten(2)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return o.transpose(1, 2).flatten(2)

    def convolved(self, x: Tensor) -> Tensor:
        """A causal convolution over three tokens."""
        padded = functional.pad(x.mT, (2, 0))
        return functional.conv1d(padded, self.kernel, groups=WIDTH).mT


class _Model(nn.Module):
    def __init__(self, *layers: nn.Module, masked: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, WIDTH)
        self.layers = nn.ModuleList(layers)
        self.masked = masked

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        assert not use_cache
        x: Tensor = self.embedding(input_ids)
        given = self.mask(input_ids.shape[1]) if self.masked else None
        for layer in self.layers:
            x = layer(x, given)
        return x

    def mask(self, tokens: int) -> Any:
        if self.layers[0].config._attn_implementation_internal == NAME:  # type: ignore[union-attr]
            return RangeMask.full(tokens, causal=True)
        return torch.ones(tokens, tokens).tril().log()


def _config() -> Any:
    return SimpleNamespace(_attn_implementation_internal="sdpa")


def _modes(*layers: nn.Module, masked: bool = False) -> list[LayerMode]:
    model = _Model(*layers, masked=masked)
    return list(check_layers(model, {str(i): layer for i, layer in enumerate(layers)}).values())


def _mode(
    first: Extra | None = None, last: Extra | None = None, dtype: torch.dtype = torch.float32
) -> LayerMode:
    layer = _Layer(_config(), first, last).to(dtype)
    model = _Model(layer).to(dtype)
    return check_layers(model, {"layer": layer})["layer"]


HONEST: dict[str, Extra] = {
    "a scale": lambda layer, x: x * 3,
    "a function of each token": lambda layer, x: torch.sin(x * x.mean(-1, keepdim=True)),
    "rows of one token": lambda layer, x: x - 0.1 * x.mean(0, keepdim=True),
}
MIXING: dict[str, Extra] = {
    "convolution": lambda layer, x: x + layer.convolved(x),
    "mean": lambda layer, x: x + 0.01 * x.mean(1, keepdim=True),
    "shift": lambda layer, x: x + 0.01 * x.roll(1, dims=1),
    "running sum": lambda layer, x: x + 0.01 * x.cumsum(1),
    "positions of its own": lambda layer, x: x * torch.arange(1, x.shape[1] + 1)[:, None],
    "the length": lambda layer, x: x * (x.shape[1] / 11),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("name", HONEST)
def test_layers_that_mix_by_attention_alone_are_tiled(
    name: str, place: str, dtype: torch.dtype
) -> None:
    mode = _mode(**{place: HONEST[name]}, dtype=dtype)
    assert mode.is_tiled, mode.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("name", MIXING)
def test_layers_that_mix_tokens_otherwise_are_found(
    name: str, place: str, dtype: torch.dtype
) -> None:
    reason = _mode(**{place: MIXING[name]}, dtype=dtype).reason
    assert reason is not None
    assert reason.startswith("run tile by tile")


def _dropped_path(layer: _Layer, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.full((x.shape[0], 1, 1), 0.5)) if layer.training else x


def _dropout_beside_a_dropped_path(layer: _Layer, x: Tensor) -> Tensor:
    return _dropped_path(layer, functional.dropout(x, 0.5, layer.training))


def _centred(layer: _Layer, x: Tensor) -> Tensor:
    return x - 0.1 * x.mean(1, keepdim=True) if layer.training else x


def _jittered(layer: _Layer, x: Tensor) -> Tensor:
    return x * torch.empty_like(x).uniform_(0.9, 1.1) if layer.training else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("extra", [_dropped_path, _dropout_beside_a_dropped_path])
def test_random_numbers_that_tokens_share_in_training_are_found(
    extra: Extra, place: str, dtype: torch.dtype
) -> None:
    assert "that tokens share" in (_mode(**{place: extra}, dtype=dtype).reason or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", ["first", "last"])
def test_tokens_that_mix_in_training_only_are_found(place: str, dtype: torch.dtype) -> None:
    assert "in training its tokens mix" in (_mode(**{place: _centred}, dtype=dtype).reason or "")


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("p", [0.1, 0.9])
def test_random_numbers_of_each_token_are_no_reason(p: float, place: str) -> None:
    def dropped(layer: _Layer, x: Tensor) -> Tensor:
        return functional.dropout(x, p, layer.training)

    extras: tuple[Extra, ...] = (dropped, _jittered)
    for extra in extras:
        mode = _mode(**{place: extra}, dtype=torch.float32)
        assert mode.is_tiled, mode.reason


@pytest.mark.parametrize("place", ["first", "last"])
def test_a_convolution_that_starts_at_zero_is_found_by_its_gradient(place: str) -> None:
    layer = _Layer(_config(), **{place: MIXING["convolution"]})
    nn.init.zeros_(layer.kernel)
    reason = check_layers(_Model(layer), {"layer": layer})["layer"].reason
    assert reason is not None
    assert "gradient of kernel" in reason


def test_attention_must_be_called_once() -> None:
    twice = _mode(last=lambda layer, y: y + layer.attend(y))
    assert "more than once" in (twice.reason or "")

    class Linear(nn.Linear):
        def forward(self, input: Tensor, mask: Any = None) -> Tensor:
            return super().forward(input)

    (never,) = _modes(Linear(WIDTH, WIDTH))
    assert "does not call" in (never.reason or "")


def test_other_tensors_beside_the_hidden_states_are_found() -> None:
    def with_more(layer: _Layer, y: Tensor) -> Any:
        return y, y.mean()

    assert "more tensors" in (_mode(last=with_more).reason or "")


def test_a_tuple_of_hidden_states_alone_is_no_reason() -> None:
    def in_a_tuple(layer: _Layer, y: Tensor) -> Any:
        return y, None

    assert _mode(last=in_a_tuple).is_tiled


def test_each_kind_is_judged_alone() -> None:
    config = _config()
    good, bad = _Layer(config), _Layer(config, last=MIXING["mean"])
    modes = _modes(good, bad)
    assert [mode.is_tiled for mode in modes] == [True, False]


def test_layers_beside_that_need_a_tensor_for_a_mask_stop_all() -> None:
    def reads_the_mask(layer: nn.Module, x: Tensor, given: Any) -> Tensor:
        return x + 0.1 * torch.exp(given).sum(-1, keepdim=True)

    class Reader(nn.Linear):
        config = None

        def forward(self, input: Tensor, mask: Any = None) -> Tensor:
            return reads_the_mask(self, super().forward(input), mask)

    modes = _modes(_Layer(_config()), Reader(WIDTH, WIDTH), masked=True)
    assert [mode.is_tiled for mode in modes] == [False, False]
    assert "beside it runs whole" in (modes[0].reason or "")


def test_a_model_that_reads_its_masks_is_not_tiled() -> None:
    class Reading(_Model):
        def mask(self, tokens: int) -> Any:
            return super().mask(tokens) + 0

    layer = _Layer(_config())
    reason = check_layers(Reading(layer, masked=True), {"layer": layer})["layer"].reason
    assert "cannot take masks as ranges" in (reason or "")
    assert "TypeError" in (reason or "")


def test_a_layer_that_is_never_called_is_an_error() -> None:
    layer, other = _Layer(_config()), _Layer(_config())
    with pytest.raises(MemoError, match=r"never called its layers \['other'\]"):
        check_layers(_Model(layer), {"layer": layer, "other": other})


def test_the_check_leaves_no_trace() -> None:
    layer = _Layer(_config())
    model = _Model(layer, nn.Dropout()).train()
    layer.mlp.eval()
    random, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    check_layers(model, {"layer": layer})
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(param.grad is None for param in model.parameters())
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert layer.config._attn_implementation_internal == "sdpa"
    assert not layer._forward_pre_hooks


class _OverTokens(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / (1 + 1e-3 * input.mean(1, keepdim=True))


class _Gated(nn.LayerNorm):
    def forward(self, input: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input) * gate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_of_tokens_alone_are_told(dtype: torch.dtype) -> None:
    assert is_tokenwise(nn.LayerNorm(6).to(dtype))
    assert is_tokenwise(nn.RMSNorm(6).to(dtype))
    assert not is_tokenwise(_Gated(6).to(dtype))
    assert not is_tokenwise(nn.BatchNorm1d(11).to(dtype))


def test_a_norm_over_tokens_is_found() -> None:
    assert not is_tokenwise(_OverTokens(6))

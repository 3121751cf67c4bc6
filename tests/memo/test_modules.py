"""A module's forward on other parameters, also where one of them has two names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from memo.modules import PlainForward


class Twice(nn.Module):
    """Two linear layers, of one weight when `is_tied`."""

    def __init__(self, *, is_tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        if is_tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("is_tied", [False, True])
def test_given_parameters_stand_under_every_name(is_tied: bool) -> None:
    module, x = Twice(is_tied=is_tied), torch.randn(2, 3)
    params = {name: torch.randn(3, 3) for name, _ in module.named_parameters()}
    before = {name: param.clone() for name, param in module.named_parameters()}
    out = PlainForward(module).with_params(params, x)
    first = params["first.weight"]
    second = first if is_tied else params["second.weight"]
    assert torch.allclose(out, x @ first.T @ second.T)
    for name, param in module.named_parameters():
        assert torch.equal(param, before[name])


def test_hooks_of_the_module_are_not_run() -> None:
    module = Twice(is_tied=False)
    module.register_forward_hook(lambda *_: pytest.fail("run"))
    PlainForward(module)(torch.randn(2, 3))

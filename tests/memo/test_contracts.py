"""The arguments of `wrap`: what they mean, and refusals that name argument, value and choices."""

from __future__ import annotations

from typing import Any

import pytest

from memo.contracts import LayerMode, Options
from memo.options import checked_options
from offload import Placement, Tier

DEFAULTS: dict[str, Any] = {
    "tile_tokens": "auto",
    "placement": "recompute",
    "skeletal": "keep",
    "tiled_loss": True,
}


def _checked(**arguments: object) -> Options:
    return checked_options(**{**DEFAULTS, **arguments})


def test_defaults_are_understood() -> None:
    options = _checked()
    assert options.tile_tokens is None
    assert options.fractions == {Placement.RECOMPUTE: 1.0}
    assert (options.skeletal, options.tiled_loss) == (Tier.DEVICE, True)


def test_each_argument_is_taken() -> None:
    assert _checked(tile_tokens=1).tile_tokens == 1
    assert _checked(skeletal="host").skeletal is Tier.HOST
    assert _checked(tiled_loss=False).tiled_loss is False
    assert _checked(placement=Placement.KEEP).fractions == {Placement.KEEP: 1.0}
    assert _checked(placement={"host": 0.25, "recompute": 0.75}).fractions == {
        Placement.HOST: 0.25,
        Placement.RECOMPUTE: 0.75,
    }


def test_fractions_of_nothing_are_dropped_and_rounding_is_no_error() -> None:
    assert _checked(placement={"host": 0, "keep": 1}).fractions == {Placement.KEEP: 1.0}
    thirds = _checked(placement=dict.fromkeys(("keep", "host", "recompute"), 1 / 3))
    assert len(thirds.fractions) == 3


@pytest.mark.parametrize(
    ("argument", "value", "takes"),
    [
        *(("tile_tokens", value, "positive number") for value in (0, -3, 1.5, True, None, "many")),
        *(("skeletal", value, "'keep', 'host', 'ssd'") for value in ("recompute", None, ["keep"])),
        *(("tiled_loss", value, "True or False") for value in (1, None, "yes")),
        *(
            ("placement", value, "'keep', 'host', 'ssd', 'recompute'")
            for value in ("disk", None, {}, {"disk": 1}, {"disk": 0.5, "keep": 0.5}, 0.5, ["keep"])
        ),
    ],
)
def test_refusals_name_argument_value_and_choices(argument: str, value: object, takes: str) -> None:
    with pytest.raises(ValueError, match=argument) as refusal:
        _checked(**{argument: value})
    assert repr(value) in str(refusal.value)
    assert takes in str(refusal.value)


@pytest.mark.parametrize("share", [-0.1, 1.1, True, "half", None, float("nan"), float("inf")])
def test_a_share_is_from_0_to_1(share: object) -> None:
    with pytest.raises(ValueError, match=r"placement\['keep'\]=.*from 0 to 1"):
        _checked(placement={"keep": share})


@pytest.mark.parametrize("fractions", [{"keep": 0.5}, {"keep": 0.6, "host": 0.6}, {"keep": 0}])
def test_shares_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        _checked(placement=fractions)


def test_a_mode_with_a_reason_is_not_tiled() -> None:
    assert LayerMode().is_tiled
    assert not LayerMode("mixes tokens").is_tiled

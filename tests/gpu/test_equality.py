"""Invariant 2 on a GPU: loss and gradients of wrapped models against the unwrapped ones.

Scope: errors against a wider reference, held against the unwrapped model's own in the same dtype:
kernels on a GPU are many, and their errors are no constants of ours.
"""

from __future__ import annotations

import copy

import pytest
import torch

import memo
from tests.families.harness import build, global_error, train_step
from tests.gpu.common import NAMES, TILE_TOKENS, batch_on, family, models, on, reference_step

FLOAT32_FLOOR = 2e-6
"""Relative; a few ulps, as Hugging Face's norms and softmax are in float32 in the reference too."""

BFLOAT16_FLOOR = 1e-3
SEEDS = range(3)

by_name = pytest.mark.parametrize("name", NAMES)


@by_name
@pytest.mark.parametrize("tile_tokens", [TILE_TOKENS, 300])
def test_float32_is_as_near_to_float64_as_the_unwrapped_model(
    name: str, tile_tokens: int, device: torch.device
) -> None:
    plain, wrapped = models(name, device, torch.float32, tile_tokens=tile_tokens)
    batch = batch_on(device)
    reference = reference_step(plain, batch, torch.float64)
    ours, theirs = train_step(wrapped, batch), train_step(plain, batch)
    assert float(ours.loss) == pytest.approx(float(reference.loss), rel=1e-5)
    allowed = 2 * global_error(theirs.grads, reference.grads) + FLOAT32_FLOOR
    assert global_error(ours.grads, reference.grads) <= allowed


@by_name
def test_all_layers_are_tiled(name: str, device: torch.device) -> None:
    _, wrapped = models(name, device, torch.bfloat16)
    report = memo.report(wrapped)
    assert all(kind.tiled for kind in report.kinds), str(report)


@by_name
def test_bfloat16_is_as_near_to_float32_as_the_unwrapped_model(
    name: str, device: torch.device
) -> None:
    ours = theirs = 0.0
    for seed in SEEDS:  # of one draw, which of two good roundings lies nearer is a coin toss
        plain, wrapped = models(name, device, torch.bfloat16, seed=seed)
        batch = batch_on(device, seed=seed)
        reference = reference_step(plain, batch, torch.float32)
        ours += global_error(train_step(wrapped, batch).grads, reference.grads)
        theirs += global_error(train_step(plain, batch).grads, reference.grads)
    assert ours <= 1.2 * theirs + BFLOAT16_FLOOR


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_packed_documents_are_what_each_is_alone(name: str, device: torch.device) -> None:
    plain = on(device, build(family(name)), torch.float32)
    wrapped = memo.wrap(copy.deepcopy(plain), tile_tokens=TILE_TOKENS)
    lengths = (100, 1, 64, 40)
    batch = batch_on(device, 1, sum(lengths))
    positions = torch.cat([torch.arange(n, device=device) for n in lengths])[None]
    ids = batch["input_ids"]
    got = wrapped(input_ids=ids, position_ids=positions).logits
    alone = [plain(input_ids=part).logits for part in ids.split(lengths, dim=1)]
    torch.testing.assert_close(got, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-4)

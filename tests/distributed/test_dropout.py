"""Random numbers of ranks that were seeded alike: no two tokens share theirs, and all generators
go on together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import memo
from memo.parallel.wire import Wire
from tests.distributed.calls import Asked, wrapped
from tests.distributed.ranks import run_ranks
from tests.families.catalogue import family_named
from tests.families.harness import build, random_batch

TOKENS = 20


def _after_a_layer(wire: Wire) -> Tensor:
    """What a layer with dropout makes of tokens that are all alike, [tokens, hidden]."""
    model = wrapped(Asked(family="gpt2", options={"tile_tokens": 5}), wire.group.size)
    model.get_parameter("transformer.wpe.weight").detach().zero_()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name.endswith("mlp.dropout"):
            module.p = 0.5
    torch.manual_seed(5)
    ids = torch.full((1, TOKENS), 7)
    hidden: Tensor = model(input_ids=ids, labels=ids, output_hidden_states=True).hidden_states[1]
    return hidden[0].detach()


def test_no_rank_drops_what_another_does(tmp_path: Path) -> None:
    hidden = run_ranks(_after_a_layer, 2, tmp_path)[0]
    # Attention's means of values that are all alike differ in their last bits.
    assert len({tuple(token.tolist()) for token in (1e4 * hidden).round()}) == TOKENS


def _numbers(wire: Wire) -> tuple[Tensor, float]:
    """The generator's state after two steps with attention dropout, and the last loss."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4}
    family = family_named("llama")
    model = build(replace(family, sizes={**family.sizes, **sizes}))
    memo.wrap(model, tile_tokens=5, sequence_parallel=wire.group.size)
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.3)  # noqa: B010 - types know no such field
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for seed in (1, 2):
        loss = model(**random_batch(2, TOKENS, seed=seed)).loss
        loss.backward()
    assert not torch.equal(torch.get_rng_state(), before)
    return torch.get_rng_state(), float(loss.detach())


def test_generators_go_on_together_where_ranks_have_other_numbers_of_heads(tmp_path: Path) -> None:
    found = run_ranks(_numbers, 3, tmp_path)  # the first runs its heads at once, others in two runs
    for state, loss in found[1:]:
        assert torch.equal(state, found[0][0])
        assert loss == found[0][1]

"""The table of gradient scales: which engine, mesh, model and batch, with what between steps.

Scope: data, and batches that are packed or padded. Training them stands in `engines.py`, errors of
updates in `errors.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.distributed.engines import TOKENS, Training
from tests.families.catalogue import Family, family_named

Packing = Literal["plain", "packed", "padded"]
PACKINGS: tuple[Packing, ...] = ("packed", "padded")

TORCH = ("ddp", "fsdp2")
ZERO = ("zero0", "zero1", "zero2", "zero3")

MESHES = ((2, 2), (4, 4), (8, 8), (4, 2))
"""Ranks of the job, and how many of them share a sequence; the last is 2 x 2."""

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "mixtral", "cohere2", "gpt_oss", "deepseek_v3")
"""Windows, soft-capping, experts, norms in parallel, sinks, and v of a size of its own."""

HEADS: Mapping[str, tuple[int, int]] = {
    "uneven": (9, 3),
    "few kv": (8, 1),
    "few": (2, 1),
    "even": (8, 8),
}
"""Query and kv heads: of 9, no number of ranks here has a divisor; one kv head is held by all
ranks; two heads are fewer than 4 ranks.
"""

CLIP = 0.5
"""Less than the norm of any step's gradient."""

DOCUMENTS = ((20, 1, 16), (9, 28))
"""Lengths of the documents in a packed batch's rows: they end within ranks' shares."""


@dataclass(frozen=True, kw_only=True)
class Cell(Training):
    """One entry of the table; `heads`: a name in HEADS."""

    packing: Packing = "plain"
    heads: str = "uneven"

    @property
    def model_family(self) -> Family:
        family = family_named(self.family)
        heads, kv_heads = HEADS[self.heads]
        hidden = 36 if heads == 9 else 32
        sizes = {"num_attention_heads": heads, "hidden_size": hidden}
        if self.family == "deepseek_v3":  # k and v come of one latent vector, for every head
            sizes["num_key_value_heads"] = heads
        else:
            sizes |= {"num_key_value_heads": kv_heads, "head_dim": 8}
        return replace(family, sizes={**family.sizes, **sizes})

    def batch(self, group: int, turn: int) -> dict[str, Any]:
        batch = super().batch(group, turn)
        if self.packing == "packed":
            return _packed(batch)
        return _padded(batch) if self.packing == "padded" else batch

    def loss_alone(self, model: nn.Module, batch: dict[str, Any], items: dict[str, Any]) -> Tensor:
        """Of a packed batch, the sum over documents, each of which runs for itself."""
        if self.packing != "packed":
            return super().loss_alone(model, batch, items)
        count = items.get("num_items_in_batch", (batch["labels"][:, 1:] != -100).sum())
        losses = [
            model(input_ids=ids, labels=labels, num_items_in_batch=count).loss
            for ids, labels in _documents(batch)
            if ids.shape[1] > 1
        ]
        return torch.stack(losses).sum()

    def __str__(self) -> str:
        more = f", {self.accumulation} turns" if self.accumulation > 1 else ""
        clip = ", clipped" if self.clip else ""
        return f"{self.engine} {self.family}, {self.packing}, {self.heads} heads{more}{clip}"


def _packed(batch: dict[str, Any]) -> dict[str, Any]:
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in DOCUMENTS])
    labels = batch["labels"].masked_fill(positions == 0, -100)
    return {**batch, "labels": labels, "position_ids": positions}


def _documents(batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for ids, labels, lengths in zip(batch["input_ids"], batch["labels"], DOCUMENTS, strict=True):
        parts = zip(ids.split(list(lengths)), labels.split(list(lengths)), strict=True)
        yield from ((own[None], labels_of[None]) for own, labels_of in parts)


def _padded(batch: dict[str, Any]) -> dict[str, Any]:
    padding = torch.ones(2, TOKENS, dtype=torch.int64)
    padding[0, 26:] = padding[1, :7] = 0
    labels = batch["labels"].masked_fill(padding == 0, -100)
    labels[1, 7] = -100  # nobody's label: the token before it is padding
    return {**batch, "labels": labels, "attention_mask": padding}


def scale_cells(engine: str, degree: int) -> list[Cell]:
    """With and without accumulation, clipping, and a count of labels as HF Trainer passes one."""
    kinds = product((1, 3), (None, CLIP))
    cells = [
        Cell(engine=engine, degree=degree, accumulation=turns, clip=clip) for turns, clip in kinds
    ]
    return [*cells, Cell(engine=engine, degree=degree, accumulation=2, clip=CLIP, counted=True)]


def model_cells(engine: str, degree: int) -> list[Cell]:
    """Every family, packed and padded, each with every kind of heads: one step."""
    return [
        _one_step(engine, degree, family, packing, heads)
        for family, packing, heads in product(FAMILIES, PACKINGS, HEADS)
    ]


def every_cell(engine: str, degree: int) -> list[Cell]:
    """The whole table of an engine on a mesh."""
    return [*scale_cells(engine, degree), *model_cells(engine, degree)]


def chosen_cells(engine: str, mesh: tuple[int, int]) -> list[Cell]:
    """All of `scale_cells`, and of the others those whose turn it is: an engine has every family
    packed and padded on one of the meshes, and every mesh all kinds of heads.
    """
    first, place = (*TORCH, *ZERO).index(engine), MESHES.index(mesh)
    cells = scale_cells(engine, mesh[1])
    for turn, (family, packing) in enumerate(product(FAMILIES, PACKINGS)):
        if (turn + first) % len(MESHES) == place:
            heads = list(HEADS)[(turn // len(MESHES) + first) % len(HEADS)]
            cells.append(_one_step(engine, mesh[1], family, packing, heads))
    return cells


def _one_step(engine: str, degree: int, family: str, packing: Packing, heads: str) -> Cell:
    return Cell(engine=engine, degree=degree, family=family, packing=packing, heads=heads, steps=1)

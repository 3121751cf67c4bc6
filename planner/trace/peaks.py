"""What parts of a step need one after another: a layer with some tiles stored, and a whole step.

Scope: blocks are added up by how much they leave behind: a step's peak is the largest of what the
blocks before left plus what a block needs beyond that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from planner.trace.contracts import LayerTrace, PartTrace, StepTrace
from planner.trace.live import need_of
from planner.trace.mixed import mixed_need
from planner.trace.need import Need


@dataclass(frozen=True, slots=True)
class PartNeed:
    """Needs of forward and backward of one part."""

    forward: Need
    backward: Need

    @classmethod
    def of(cls, part: PartTrace) -> PartNeed:
        return cls(need_of(part.forward), need_of(part.backward))


def layer_need(layer: LayerTrace, stored_tiles: int) -> PartNeed:
    """Of a layer with `stored_tiles` of its tiles kept on the device and all others recomputed:
    traced with none and with all of them, and mixed. Which ones is not asked: where the last tile
    is shorter, the sum may be off by what one tile stores.

    Raises:
        ValueError: when the layer has fewer tiles.
    """
    if not 0 <= stored_tiles <= layer.tiles:
        raise ValueError(f"stored_tiles is {stored_tiles}: takes 0 to {layer.tiles}")
    if stored_tiles in (0, layer.tiles):
        return PartNeed.of(layer.kept if stored_tiles else layer.recomputed)
    none, every = layer.recomputed, layer.kept
    share = {"stored_tiles": stored_tiles, "tiles": layer.tiles}
    return PartNeed(
        mixed_need(none.forward, every.forward, **share),
        mixed_need(none.backward, every.backward, **share),
    )


def step_needs(step: StepTrace, stored_tiles: Sequence[int]) -> Iterator[tuple[str, Need]]:
    """The needs of a step's blocks in the order in which they run, with their names;
    `stored_tiles` by layer.

    Raises:
        ValueError: when there is not one number per layer.
    """
    if len(stored_tiles) != len(step.order):
        raise ValueError(
            f"stored_tiles has {len(stored_tiles)} numbers: takes {len(step.order)}, one per layer"
        )
    classes = {layer.name: layer for layer in step.layers}
    known = {
        key: layer_need(classes[key[0]], key[1])
        for key in set(zip(step.order, stored_tiles, strict=True))
    }
    layers = [known[key] for key in zip(step.order, stored_tiles, strict=True)]
    embedding, head = PartNeed.of(step.embedding), PartNeed.of(step.head)
    yield "embedding forward", embedding.forward
    for index, layer in enumerate(layers):
        yield f"layer {index} forward", layer.forward
    yield "head forward", head.forward
    yield "head backward", head.backward
    for index, layer in reversed(list(enumerate(layers))):
        yield f"layer {index} backward", layer.backward
    yield "embedding backward", embedding.backward


def step_peak_bytes(step: StepTrace, stored_tiles: Sequence[int]) -> int:
    """Most bytes of tensors that live at a time in a step on one device, from no gradients to all:
    parameters and inputs, all activations, and gradients; the optimizer's states are not in it.
    `stored_tiles`: see `step_needs`.
    """
    need = Need(0, 0)
    for _, block in step_needs(step, stored_tiles):
        need = need.then(block)
    return step.base_bytes + need.peak_bytes

"""What segments look like from outside, as `torch.cuda.memory_snapshot` shows them.

Scope: reading; nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.allocator.blocks import Block
from planner.allocator.contracts import BlockView, Segment
from planner.allocator.state import State


def segments(state: State) -> tuple[Segment, ...]:
    """By address; of expandable segments each mapped stretch."""
    blocks = [*state.live.values(), *state.waiting]
    blocks += [*state.small.free_blocks(), *state.large.free_blocks()]
    heads = [block for block in blocks if _is_head(block)]
    return tuple(_segment(head) for head in sorted(heads, key=lambda block: block.address))


def _is_head(block: Block) -> bool:
    return block.previous is None or not block.previous.is_mapped


def _segment(head: Block) -> Segment:
    blocks = list(_run(head))
    return Segment(
        address=head.address,
        size_bytes=sum(block.size_bytes for block in blocks),
        stream=head.stream,
        is_small=head.pool.is_small,
        is_expandable=head.expandable is not None,
        blocks=tuple(_view(block) for block in blocks),
    )


def _run(head: Block) -> Iterator[Block]:
    block: Block | None = head
    while block is not None and block.is_mapped:
        yield block
        block = block.next


def _view(block: Block) -> BlockView:
    return BlockView(
        address=block.address,
        size_bytes=block.size_bytes,
        requested_bytes=block.requested_bytes,
        id=block.owner_id,
        is_allocated=block.is_allocated,
        is_active=not block.is_idle,
    )

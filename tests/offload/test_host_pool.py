"""The pool of host memory: exact sizes, no two borrowers of one byte, and nothing left to rot."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from offload.host_memory import LARGE_PAGE_BYTES, host_memory
from offload.host_pool import ALIGNMENT_BYTES, Extent, HostPool, aligned
from offload.streams import Event


@dataclass
class _Flag:
    """An event that is done when it is told so."""

    done: bool = False

    def is_done(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        raise AssertionError("nobody waits here")

    def seconds_since(self, earlier: Event) -> float:
        return 0.0


def _pool() -> HostPool:
    return HostPool(lambda size_bytes: torch.zeros(size_bytes, dtype=torch.uint8))


def test_memory_is_writable_and_of_the_size_asked_for() -> None:
    memory = host_memory(LARGE_PAGE_BYTES + 5)
    memory.fill_(7)
    assert memory.numel() == LARGE_PAGE_BYTES + 5
    assert int(memory.sum(dtype=torch.int64)) == 7 * memory.numel()


def _take(pool: HostPool, size_bytes: int) -> Extent:
    extent = pool.take(size_bytes)
    assert extent is not None
    return extent


def test_memory_that_the_system_refuses_is_told() -> None:
    with pytest.raises(MemoryError, match="host memory"):
        host_memory(1 << 60)


def test_an_odd_size_takes_itself_and_its_alignment() -> None:
    pool = _pool()
    extent = _take(pool, 5 * LARGE_PAGE_BYTES + 1)
    assert extent.size_bytes == 5 * LARGE_PAGE_BYTES + ALIGNMENT_BYTES
    assert pool.size_bytes == 6 * LARGE_PAGE_BYTES
    assert extent.memory.numel() == extent.size_bytes


@pytest.mark.parametrize("seed", range(20))
def test_borrowers_never_share_a_byte_and_neighbours_join_again(seed: int) -> None:
    pool, rng = _pool(), random.Random(seed)
    lent: dict[int, tuple[Extent, Tensor]] = {}
    for number in range(200):
        if lent and rng.random() < 0.5:
            mark = rng.choice(list(lent))
            extent, memory = lent.pop(mark)
            assert bool((memory == mark % 251).all()), "somebody else wrote here"
            pool.give_back(extent, [])
        else:
            extent = _take(pool, rng.randint(1, 300_000))
            lent[number] = extent, extent.memory.fill_(number % 251)
    for extent, _ in lent.values():
        pool.give_back(extent, [])
    assert pool.free_bytes == pool.size_bytes
    assert all(len(slab.free) == 1 for slab in pool._slabs)


def test_who_used_an_extent_last_goes_with_every_part_of_it() -> None:
    pool, first, second = _pool(), _Flag(), _Flag()
    left, right = _take(pool, 1000), _take(pool, 1000)
    pool.give_back(left, [first])
    pool.give_back(right, [second])
    again = _take(pool, 1500)
    assert set(map(id, again.events)) == {id(first), id(second)}


def test_reserved_bytes_come_in_one_slab() -> None:
    pool = _pool()
    pool.reserve(10 * LARGE_PAGE_BYTES)
    for _ in range(10):
        _take(pool, LARGE_PAGE_BYTES)
    assert len(pool._slabs) == 1
    assert (pool.size_bytes, pool.free_bytes) == (10 * LARGE_PAGE_BYTES, 0)


def test_lengths_that_grow_leave_no_smaller_slabs_behind() -> None:
    pool = _pool()
    for pages in range(1, 12):
        pool.give_back(_take(pool, pages * LARGE_PAGE_BYTES), [])
    assert pool.size_bytes == 11 * LARGE_PAGE_BYTES


def test_a_slab_in_which_a_copy_is_under_way_is_not_let_go() -> None:
    pool, flag = _pool(), _Flag()
    pool.give_back(_take(pool, LARGE_PAGE_BYTES), [flag])
    _take(pool, 2 * LARGE_PAGE_BYTES)
    assert pool.size_bytes == 3 * LARGE_PAGE_BYTES
    flag.done = True
    _take(pool, 3 * LARGE_PAGE_BYTES)
    assert pool.size_bytes == 5 * LARGE_PAGE_BYTES


def test_alignment() -> None:
    assert [aligned(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]

"""Our engines as subjects: requests through the queue, as the spool makes them.

Scope: one pass of one engine. All requests are submitted at once, one for each block, and the
engine's depth alone limits what is under way; request k uses buffer k modulo the depth, and nobody
looks at what is in it. CPU seconds are the process's, user and system (`getrusage`). io_uring's
own workers (`iou-wrk-*`) are threads of the process and counted: on Linux 6.18, reads that were
forced to them showed there, and not in the thread that submitted. Interrupts and the kernel's
general workers (`kworker`: a file system's endings of writes to new blocks) are charged to nobody,
for fio as for us.
"""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Iterator
from contextlib import closing

from ssd.bench.contracts import Case, Op, Rig, Sample
from ssd.choice import choose_engine
from ssd.contracts import EngineKind, Operation, Piece
from ssd.request_queue import RequestQueue

_OPERATIONS = {
    Op.WRITE: (Operation.WRITE,),
    Op.READ: (Operation.READ,),
    Op.MIXED: (Operation.WRITE, Operation.READ),
}


class EngineSubject:
    """See `ssd.bench.contracts.Subject`. A new engine and queue for each pass, made and closed
    outside the time that is taken; buffers are fixed where that works.
    """

    def __init__(self, kind: EngineKind) -> None:
        self.name = str(kind)
        self._kind = kind
        self._is_fixing = kind is EngineKind.URING

    def measure(self, rig: Rig, case: Case) -> Sample:
        engine = choose_engine([rig.file], self._kind, depth=case.depth)
        with closing(RequestQueue(engine, max_requests=rig.blocks(case))) as queue:
            queue.pulse.places = str(rig.file.directory)
            if self._is_fixing:  # once refused, it is refused, and was said
                self._is_fixing = engine.fix([rig.memory[: case.depth * case.block_bytes]])
            return _pass(queue, rig, case)


def _pass(queue: RequestQueue, rig: Rig, case: Case) -> Sample:
    moves = list(_moves(rig, case))
    start_s, start_cpu_s = time.perf_counter(), _cpu_s()
    requests = [queue.submit(operation, [piece]) for operation, piece in moves]
    # From the last, which ends about last: the others wake nobody.
    for request in reversed(requests):
        request.wait()
    taken_s, cpu_s = time.perf_counter() - start_s, _cpu_s() - start_cpu_s
    moved_bytes = len(moves) * case.block_bytes
    return Sample(bytes_per_s=moved_bytes / taken_s, cpu_s_per_gb=cpu_s / (moved_bytes / 1e9))


def _moves(rig: Rig, case: Case) -> Iterator[tuple[Operation, Piece]]:
    operations = itertools.cycle(_OPERATIONS[case.op])
    buffers = itertools.cycle(rig.buffers(case))
    for index, operation, buffer in zip(range(rig.blocks(case)), operations, buffers, strict=False):
        yield operation, Piece(rig.file, index * case.block_bytes, buffer)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

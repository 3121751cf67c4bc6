"""Opening a spool: files or devices, an engine that works on them, and the queue between.

Scope: one function that puts the parts together, and lets all go when one can't be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ssd.checksums import Checksums
from ssd.choice import choose_engine
from ssd.contracts import EngineKind, SpoolFile, Verify
from ssd.devices import grow_device, open_device
from ssd.files import close_file, grow_file, open_file
from ssd.request_queue import RequestQueue
from ssd.settings import common_setting
from ssd.spool import BLOCK_BYTES, Spool
from ssd.stripes import shares


def open_spool(
    directories: Sequence[Path],
    size_bytes: int | None = None,
    *,
    engine: EngineKind | str = EngineKind.AUTO,
    verify: Verify | str = Verify.NONE,
    raw: bool = False,
    block_bytes: int | None = None,
    depth: int | None = None,
    max_requests: int = 64,
    stall_s: float = 30.0,
    settings: Path | None = None,
) -> Spool:
    """A spool of `size_bytes` in all over `directories`, best each on a disk of its own; None: a
    block of each, from which it may grow. With `raw` they are block devices, whose contents are
    lost. `stall_s`: the silence of a disk after which
    whoever waits for it is told.

    With the engine "auto", the engine, `block_bytes` and `depth` (attempts under way) that are not
    given are those that `memo bench ssd` saved for these directories (in `settings`, or else in the
    user's cache folder), or else io_uring where it works, 4 MiB, and the engine's own.

    Raises:
        SpillError: when a directory or its space, a device or an engine can't be had.
        ValueError: when an argument is wrong by itself.
    """
    kind, verify = EngineKind(engine), Verify(verify)
    saved = None
    if kind is EngineKind.AUTO and not raw:
        saved = common_setting(directories, path=settings)
    if saved is not None:
        # What worked once may be refused today: then `AUTO` still finds threads.
        kind = saved.engine if saved.engine is EngineKind.THREADS else kind
        depth = saved.depth if depth is None else depth
        least_bytes = saved.block_bytes * len(directories)
        if block_bytes is None and (size_bytes is None or size_bytes >= least_bytes):
            block_bytes = saved.block_bytes
    block_bytes = BLOCK_BYTES if block_bytes is None else block_bytes
    size_bytes = block_bytes * len(directories) if size_bytes is None else size_bytes
    with ExitStack() as stack:
        files = _open_files(directories, _sizes(directories, size_bytes, block_bytes), raw, stack)
        checksums = Checksums() if verify is Verify.CHECKSUM else None
        queue = RequestQueue(
            choose_engine(files, kind, depth=depth),
            max_requests=max_requests,
            stall_s=stall_s,
            check=None if checksums is None else checksums.check,
        )
        stack.callback(queue.close)
        spool = Spool(
            files,
            queue,
            checksums=checksums,
            block_bytes=block_bytes,
            grow_file=grow_device if raw else grow_file,
        )
        stack.pop_all()
    return spool


def _sizes(directories: Sequence[Path], size_bytes: int, block_bytes: int) -> list[int]:
    if not directories:
        raise ValueError("directories is empty: it takes one or more")
    if block_bytes <= 0:
        raise ValueError(f"block_bytes is {block_bytes}: it takes 1 or more")
    sizes = shares(size_bytes, block_bytes=block_bytes, files=len(directories))
    if min(sizes) <= 0:
        least_bytes = block_bytes * (len(directories) - 1)
        raise ValueError(
            f"size_bytes is {size_bytes}: it takes more than {least_bytes} for {len(directories)} "
            f"directories in blocks of {block_bytes}"
        )
    return sizes


def _open_files(
    directories: Sequence[Path], sizes: Sequence[int], raw: bool, stack: ExitStack
) -> list[SpoolFile]:
    open_one = open_device if raw else open_file
    files: list[SpoolFile] = []
    for directory, share_bytes in zip(directories, sizes, strict=True):
        files.append(open_one(directory, share_bytes))
        stack.callback(close_file, files[-1])
    return files

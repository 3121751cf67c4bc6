"""Stores with a real disk, for tests of the SSD tier.

Scope: making them, in a folder of the test's or the system's for temporary files.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from offload import TensorStore, open_disk


def disk_store(folder: Path | None = None, **options: Any) -> TensorStore:
    """A store whose SSD tier is in a folder."""
    directory = folder or Path(tempfile.gettempdir())
    store = TensorStore(open_disk=partial(open_disk, [directory]), **options)
    store.prepare()
    return store

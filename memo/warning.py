"""Memo's own warning, and saying things once.

Scope: one class and one function.
"""

from __future__ import annotations

import warnings
from typing import Protocol


class MemoWarning(UserWarning):
    """Something was asked that runs in another way than one would expect; the message says which
    and why.
    """


class Notes(Protocol):
    def note(self, what: str) -> bool:
        """Count an event for the report; true the first time."""


def warn_once(notes: Notes, message: str) -> None:
    """Warn the first time that this model meets the event, and count every time."""
    if notes.note(message):
        warnings.warn(message, MemoWarning, stacklevel=3)

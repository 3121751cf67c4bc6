"""How a command fails: one line on standard error (what, why, what to do) and an exit status.

Scope: what all commands share.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console

from memo.measure import is_out_of_memory
from memo.training.contracts import RefusedInputError
from offload import MemoError

_INTERRUPTED = 130


@contextmanager
def one_line_errors(
    *kinds: type[Exception], less_memory: str = "smaller sizes", interrupted: str = "interrupted"
) -> Iterator[None]:
    """Turn what a user can act on into one line and an exit status: refused input, errors of memo's
    and of `kinds`, files, memory (`less_memory`: what takes less), and interruptions.
    """
    told: tuple[type[Exception], ...] = (RefusedInputError, MemoError, *kinds)
    try:
        yield
    except KeyboardInterrupt:
        fail(interrupted, status=_INTERRUPTED)
    except told as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).splitlines()[0] if str(error) else "no details"
        fail(f"out of memory: take {less_memory} ({first_line})")


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Say why, and end."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"error: {message}", style="bold red", markup=False
    )
    raise typer.Exit(status)

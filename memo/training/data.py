"""Long text for training: files to documents, documents to token ids, token ids to windows.

Documents are joined with the tokenizer's end-of-text token and cut into windows of equal length;
attention in a window sees across documents, as in usual language-model training. Nothing is
padded, masked or downloaded here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from memo.training.contracts import RefusedInputError


def read_documents(source: Path, *, glob: str = "*") -> Iterator[str]:
    """Yield the documents of a file, or of every file in a folder whose name matches `glob`.

    A text file is one document; a `.jsonl` file has one a line, under the key "text". Folders are
    walked in sorted order, hidden files and folders left out; documents of white space are skipped.

    Raises: RefusedInputError for what is missing, unreadable, or not UTF-8 text.
    """
    for path in find_files(source, glob=glob):
        text = _read_text(path)
        documents = _jsonl_documents(path, text) if path.suffix == ".jsonl" else iter((text,))
        yield from (document for document in documents if document.strip())


def find_files(source: Path, *, glob: str = "*") -> list[Path]:
    """Return `source` itself, or the files below it that match, sorted."""
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise RefusedInputError(f"cannot read {source}: there is no such file or folder")
    files = sorted(path for path in source.rglob(glob) if path.is_file() and _shown(path, source))
    if not files:
        raise RefusedInputError(f"cannot read {source}: no file in it matches --glob {glob!r}")
    return files


def encode(
    documents: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    limit_tokens: int | None = None,
) -> Tensor:
    """Return the token ids of all documents in one run, int32, [tokens].

    Each document ends with the tokenizer's end-of-text token, where it has one. `limit_tokens`
    stops reading once so many are there, and cuts to it.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pieces: list[Tensor] = []
    count = 0
    for document in documents:
        # verbose=False: a document longer than the model's context is the point, not a mistake.
        ids = tokenizer.encode(document, add_special_tokens=False, verbose=False) + end
        pieces.append(torch.tensor(ids, dtype=torch.int32))
        count += len(ids)
        if limit_tokens is not None and count >= limit_tokens:
            break
    joined = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int32)
    return joined[:limit_tokens]


class Windows:
    """Token ids cut into windows of equal length, and the order in which training takes them.

    With a seed, each pass over the windows has its own order, a function of (seed, pass) alone: so
    the number of the step is the whole data position. Without one the order is that of the text.
    A rest shorter than a window is left out; `dropped_tokens` says how long it was.
    """

    def __init__(self, ids: Tensor, *, tokens: int, seed: int | None) -> None:
        count = len(ids) // tokens
        if count == 0:
            raise RefusedInputError(
                f"the data holds {len(ids):,} tokens, and one sequence takes {tokens:,}: "
                "give more text, or fewer --tokens"
            )
        self._rows = ids[: count * tokens].view(count, tokens)
        self._seed = seed
        self._pass = -1
        self._order = torch.arange(count)
        self.dropped_tokens = len(ids) - count * tokens

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Tensor:
        """All windows in the order of the text, int32, [windows, tokens]."""
        return self._rows

    def at_step(self, step: int) -> Tensor:
        """Return the window of a step, counted from 0 over all passes: int64, [1, tokens]."""
        number, position = divmod(step, len(self))
        if self._seed is not None and number != self._pass:
            generator = torch.Generator().manual_seed(self._seed + number)
            self._order = torch.randperm(len(self), generator=generator)
            self._pass = number
        return self._rows[self._order[position]].long().unsqueeze(0)

    def fingerprint(self) -> str:
        """Return a digest of the windows' tokens, to tell on resuming whether the data changed."""
        return hashlib.sha256(self._rows.numpy().tobytes()).hexdigest()


def _shown(path: Path, source: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(source).parts)


def _read_text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RefusedInputError(
            f"cannot read {path}: byte {exc.start} is not UTF-8 text; "
            "choose the text files of a folder with --glob '*.txt'"
        ) from exc
    except OSError as exc:
        raise RefusedInputError(f"cannot read {path}: {exc.strerror}") from exc
    if "\0" in text:
        raise RefusedInputError(
            f"cannot read {path}: it holds NUL bytes, so it is no text; "
            "choose the text files of a folder with --glob '*.txt'"
        )
    return text


def _jsonl_documents(path: Path, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as exc:
            raise RefusedInputError(
                f'cannot read {path}: line {number} is no JSON object with a "text" key'
            ) from exc
        if not isinstance(document, str):
            raise RefusedInputError(f'cannot read {path}: "text" in line {number} is no string')
        yield document

"""From files to windows: what is read, in which order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memo.training.contracts import RefusedInputError
from memo.training.data import Windows, encode, read_documents
from tests.conftest import byte_tokenizer


def test_a_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n\ntwo\n", encoding="utf-8")
    assert list(read_documents(path)) == ["one\n\ntwo\n"]


def test_a_folder_is_read_in_sorted_order_without_hidden_and_blank_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden.txt", "sub/c.txt", ".git/d.txt", "other.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name, encoding="utf-8")
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    assert list(read_documents(tmp_path, glob="*.txt")) == ["a.txt", "b.txt", "sub/c.txt"]


def test_jsonl_holds_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n', encoding="utf-8")
    assert list(read_documents(path)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("latin.txt", "caf\xe9".encode("latin-1"), "byte 3 is not UTF-8"),
        ("weights.bin", b"ab\0cd", "NUL"),
        ("broken.jsonl", b'{"text": "a"}\n{"text"', "line 2"),
        ("keyless.jsonl", b'{"body": "a"}', "line 1"),
        ("number.jsonl", json.dumps({"text": 3}).encode(), "line 1 is no string"),
        ("list.jsonl", b"[1]", "line 1"),
    ],
)
def test_what_is_no_text_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RefusedInputError, match=reason) as refusal:
        list(read_documents(path))
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_source_and_an_empty_choice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedInputError, match="no such file or folder"):
        list(read_documents(tmp_path / "absent"))
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(RefusedInputError, match=r"no file in it matches --glob '\*.md'"):
        list(read_documents(tmp_path, glob="*.md"))


def test_documents_end_with_the_end_of_text_and_decode_to_what_was_read() -> None:
    tokenizer = byte_tokenizer()
    ids = encode(["héllo\n", "two"], tokenizer)
    assert ids.dtype == torch.int32
    assert tokenizer.decode(ids) == f"héllo\n{tokenizer.eos_token}two{tokenizer.eos_token}"


def test_encoding_stops_reading_at_the_limit() -> None:
    def documents() -> object:
        yield "abcdef"
        yield "ghijkl"
        raise AssertionError("read on past the limit")

    ids = encode(documents(), byte_tokenizer(), limit_tokens=10)  # type: ignore[arg-type]
    assert len(ids) == 10


def test_windows_in_text_order_repeat_and_count_the_rest() -> None:
    windows = Windows(torch.arange(23, dtype=torch.int32), tokens=5, seed=None)
    assert len(windows) == 4
    assert windows.dropped_tokens == 3
    assert windows.at_step(5).tolist() == [[5, 6, 7, 8, 9]]
    assert windows.at_step(5).dtype == torch.int64


def test_each_pass_takes_every_window_once_in_its_own_order() -> None:
    windows = Windows(torch.arange(60, dtype=torch.int32), tokens=3, seed=5)
    passes = [
        [int(windows.at_step(step)[0, 0]) for step in range(20 * n, 20 * n + 20)] for n in (0, 1)
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == list(range(0, 60, 3))
    assert passes[0] != passes[1]


def test_the_order_depends_on_seed_and_step_alone() -> None:
    ids = torch.arange(60, dtype=torch.int32)
    walked = Windows(ids, tokens=3, seed=5)
    steps = [walked.at_step(step).tolist() for step in range(45)]
    jumped = Windows(ids, tokens=3, seed=5)
    torch.manual_seed(123)
    assert jumped.at_step(31).tolist() == steps[31]
    assert jumped.at_step(7).tolist() == steps[7]
    other = Windows(ids, tokens=3, seed=6)
    assert [other.at_step(step).tolist() for step in range(45)] != steps


def test_text_shorter_than_a_window_is_refused_with_both_lengths() -> None:
    with pytest.raises(RefusedInputError, match=r"holds 7 tokens.* takes 8"):
        Windows(torch.arange(7, dtype=torch.int32), tokens=8, seed=None)


def test_the_fingerprint_tells_other_tokens() -> None:
    one, two = torch.arange(12, dtype=torch.int32), torch.arange(12, dtype=torch.int32)
    two[3] = 99
    prints = [Windows(ids, tokens=4, seed=None).fingerprint() for ids in (one, two, one.clone())]
    assert prints[0] == prints[2] != prints[1]

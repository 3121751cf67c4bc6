"""Training with the SSD tier: the same bits, nothing that grows, and what becomes of bad disks.

The transfer engine's own tests are in `tests/offload/test_spilling.py`.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import memo
from memo.wrap import runtime_of
from offload import Lane, Placement, Tier
from offload.spool_disk import SpoolDisk
from ssd import aligned_buffer
from tests.behaviour.common import batch, held_bytes, models, plain_model, wrapped_model
from tests.behaviour.state import assert_restored, state_of
from tests.families.harness import assert_equal_grads, random_batch, train_step
from tests.ssd.disk import loop_device, open_descriptors

SSD: dict[str, Any] = {"skeletal": "ssd", "placement": "ssd"}

STEPS = 200


def _disk(model: PreTrainedModel) -> SpoolDisk:
    disk = runtime_of(model).store.disk
    assert isinstance(disk, SpoolDisk)
    return disk


def _settle(model: PreTrainedModel) -> None:
    """Let all transfers be over, and all that was dropped be given back."""
    gc.collect()
    for host in runtime_of(model).store.hosts.values():
        host.streams.synchronize()
        host.sweep()
        for _, transfer, _ in list(host.space._transfers):
            transfer.settle()
        host.sweep()


def _drawn(rng: random.Random) -> dict[str, Any]:
    """Placements, tiles and budgets of one step."""
    kinds = [Placement.SSD, Placement.SSD, Placement.RECOMPUTE, Placement.HOST, Placement.KEEP]
    chosen = {rng.choice(kinds) for _ in range(3)}
    return {
        "tile_tokens": rng.choice([3, 5, 8, 64]),
        "fractions": {kind: 1 / len(chosen) for kind in chosen},
        "skeletal": rng.choice([Tier.SSD, Tier.SSD, Tier.HOST]),
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_random_steps_equal_those_of_keep_and_nothing_grows(tmp_path: Path) -> None:
    rng = random.Random(4)
    options = {"host_bytes": 1 << 20, "in_flight_bytes": 60_000, "verify": "checksum", **SSD}
    model = plain_model()
    kept = memo.wrap(copy.deepcopy(model), tile_tokens=5, placement="keep")
    spilled = memo.wrap(model, tile_tokens=5, spill_dir=tmp_path, **options)
    sizes = []
    for step in range(STEPS):
        drawn = _drawn(rng)
        runtime_of(spilled).options = replace(runtime_of(spilled).options, **drawn)
        tiles = {"tile_tokens": drawn["tile_tokens"]}
        runtime_of(kept).options = replace(runtime_of(kept).options, **tiles)
        tokens = random_batch(rng.choice([1, 2]), rng.randint(2, 60), seed=step)
        expected, got = train_step(kept, tokens), train_step(spilled, tokens)
        assert torch.equal(got.loss, expected.loss), step
        assert_equal_grads(got.grads, expected.grads)
        if step % 50 == 49:
            _settle(spilled)
            (host,) = runtime_of(spilled).store.hosts.values()
            parts = [getattr(host.space, f"_{part}") for part in ("here", "writing", "leaving")]
            assert [len(part) for part in parts] == [0, 0, 0]
            assert held_bytes(spilled) == 0
            assert host.pool.free_bytes == host.pool.size_bytes
            assert _disk(spilled)._spool.free_bytes == _disk(spilled).size_bytes
            sizes.append((host.pool.size_bytes, _disk(spilled).size_bytes, open_descriptors()))
    assert len(set(sizes)) == 1
    report = memo.report(spilled)
    assert report.lanes[Lane.SSD_READ].moved_bytes > 1 << 20
    assert report.host_memory_bytes == 1 << 20


@pytest.mark.parametrize("accumulation", [1, 3])
def test_several_forwards_before_their_backwards(tmp_path: Path, accumulation: int) -> None:
    plain, spilled = models(spill_dir=tmp_path, in_flight_bytes=0, **SSD)
    kept = memo.wrap(plain, tile_tokens=5, placement="keep")
    for model in (kept, spilled):
        losses = [model(**batch(seed=seed)).loss for seed in range(accumulation)]
        sum(losses).backward()
    for one, other in zip(kept.parameters(), spilled.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_wear_is_reported(tmp_path: Path) -> None:
    wrapped = wrapped_model(spill_dir=tmp_path, in_flight_bytes=0, **SSD)
    train_step(wrapped, batch())
    _settle(wrapped)
    first = memo.report(wrapped, reset=True).wear
    for _ in range(3):
        train_step(wrapped, batch())
    _settle(wrapped)
    report = memo.report(wrapped, endurance_tbw=600)
    wear = report.wear
    assert first is not None
    assert wear is not None
    written = report.lanes[Lane.SSD_WRITE].moved_bytes
    assert wear.bytes_per_pass == pytest.approx(first.bytes_per_pass, rel=1e-6)
    assert written == 3 * wear.bytes_per_pass
    assert wear.total_bytes == written + first.bytes_per_pass
    assert wear.total_bytes >= 4 * report.peak_bytes[Tier.SSD]
    assert wear.days is not None
    assert first.days is None
    assert f"600 TBW last {wear.days:,.0f} days" in str(report)
    with pytest.raises(ValueError, match="endurance_tbw=0"):
        memo.report(wrapped, endurance_tbw=0)


def test_a_trace_shows_the_disk(tmp_path: Path) -> None:
    wrapped = wrapped_model(spill_dir=tmp_path, in_flight_bytes=0, **SSD)
    with memo.trace(wrapped, tmp_path / "trace.json"):
        train_step(wrapped, batch())
        _settle(wrapped)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    for lane in (Lane.SSD_WRITE, Lane.SSD_READ):
        spans = [e for e in events if e["ph"] == "X" and e["tid"] == tracks[lane]]
        assert sum(span["args"]["bytes"] for span in spans) > 0
        assert all(span["dur"] > 0 and span["ts"] >= 0 for span in spans)


# ---- bad disks ----


def test_a_directory_that_is_missing_is_told_when_wrapping(tmp_path: Path) -> None:
    model = plain_model()
    state = state_of(model)
    with pytest.raises(memo.SpillError, match=r"could not create a file in .*none"):
        memo.wrap(model, spill_dir=tmp_path / "none", **SSD)
    assert_restored(model, state)


def test_space_that_is_not_there_is_told_when_wrapping(tmp_path: Path) -> None:
    with pytest.raises(memo.SpillError, match=r"could not reserve") as caught:
        memo.wrap(plain_model(), spill_dir=tmp_path, spill_bytes=1 << 56, **SSD)
    assert caught.value.directory == tmp_path


def test_memory_by_another_name_is_warned_of() -> None:
    with pytest.warns(memo.SpillWarning, match="is memory"):
        wrapped = memo.wrap(plain_model(), spill_dir="/dev/shm", **SSD)
    memo.unwrap(wrapped)


def test_a_spool_that_is_full_ends_the_step_and_a_shorter_one_runs(tmp_path: Path) -> None:
    plain, wrapped = models(spill_dir=tmp_path, spill_bytes=4 << 20, in_flight_bytes=0, **SSD)
    memo.wrap(plain, tile_tokens=5, placement="keep")
    with pytest.raises(memo.SpillError, match=r"could not allocate.*ENOSPC"):
        wrapped(**random_batch(2, 1500, seed=1)).loss.backward()
    wrapped.zero_grad()
    expected, got = train_step(plain, batch()), train_step(wrapped, batch())
    assert_equal_grads(got.grads, expected.grads)


def test_a_flipped_byte_never_reaches_a_gradient(tmp_path: Path) -> None:
    options = {"spill_dir": tmp_path, "in_flight_bytes": 0, "verify": "checksum", **SSD}
    wrapped = wrapped_model(**options)
    loss = wrapped(**batch()).loss
    for host in runtime_of(wrapped).store.hosts.values():
        for _, transfer, _ in list(host.space._transfers):
            transfer.settle()
    (file,) = _disk(wrapped)._spool.files
    os.pwrite(file.fd, aligned_buffer(1 << 20), 0)  # over what the first layers wrote
    with pytest.raises(memo.SpillError, match="not those that were written"):
        loss.backward()
    wrapped.zero_grad()
    del loss
    train_step(wrapped, batch())  # the next step runs


# ---- nothing is left ----


def test_unwrapping_lets_the_file_go(tmp_path: Path) -> None:
    gc.collect()
    before = open_descriptors()
    wrapped = wrapped_model(spill_dir=tmp_path, **SSD)
    train_step(wrapped, batch())
    assert open_descriptors() > before
    assert list(tmp_path.iterdir()) == []
    memo.unwrap(wrapped)
    gc.collect()
    assert open_descriptors() == before


def test_a_step_under_way_is_finished_after_unwrapping(tmp_path: Path) -> None:
    plain, wrapped = models(spill_dir=tmp_path, in_flight_bytes=0, **SSD)
    memo.wrap(plain, tile_tokens=5, placement="keep")
    expected = train_step(plain, batch())
    loss = wrapped(**batch()).loss
    memo.unwrap(wrapped)
    loss.backward()
    for name, param in wrapped.named_parameters():
        want = expected.grads[name]
        assert want is not None
        assert param.grad is not None
        assert torch.equal(param.grad, want), name


def test_a_copy_of_a_wrapped_model_has_a_file_of_its_own(tmp_path: Path) -> None:
    wrapped = wrapped_model(spill_dir=tmp_path, in_flight_bytes=0, **SSD)
    other = copy.deepcopy(wrapped)
    assert _disk(other)._spool is not _disk(wrapped)._spool
    expected, got = train_step(wrapped, batch()), train_step(other, batch())
    assert_equal_grads(got.grads, expected.grads)


# ---- several disks, raw ones, and one whose directory goes ----


def _equals_kept(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    memo.wrap(plain, tile_tokens=5, placement="keep")
    expected, got = train_step(plain, batch()), train_step(model, batch())
    assert_equal_grads(got.grads, expected.grads)


def test_several_directories_share_the_work(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    plain, wrapped = models(spill_dir=places, in_flight_bytes=0, **SSD)
    _equals_kept(wrapped, plain)
    assert len(_disk(wrapped)._spool.files) == 2


def test_a_raw_device_serves(tmp_path: Path) -> None:
    with loop_device(tmp_path) as device:
        plain, wrapped = models(spill_dir=device, raw=True, in_flight_bytes=0, **SSD)
        _equals_kept(wrapped, plain)
        with pytest.raises(memo.SpillError, match=r"could not reserve.*the device has 16,777,216"):
            _disk(wrapped).reserve(1 << 30)
        _disk(wrapped).close()


def test_a_directory_that_is_removed_in_training_is_not_missed(tmp_path: Path) -> None:
    place = tmp_path / "spill"
    place.mkdir()
    plain, wrapped = models(spill_dir=place, in_flight_bytes=0, **SSD)
    train_step(wrapped, batch())
    place.rmdir()
    wrapped.zero_grad()
    _equals_kept(wrapped, plain)

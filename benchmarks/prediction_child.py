"""One child process of the benchmark of predictions: `JOB.json` in, `RESULT.json` out.

Scope: what is predicted, by the planner's own path (probe, trace, calibration, costs, simulation).
What is measured stands in `prediction_step`.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging

import memo
from benchmarks.prediction_contracts import PLACEMENTS, PLANNED, Job, Predicted, Result, Work
from benchmarks.prediction_models import config_of
from benchmarks.prediction_step import SKELETAL, build, measure
from memo.doctor import hardware_of, probe_machine
from memo.planning.calibration import calibrated
from memo.planning.making import make
from memo.planning.node import Node
from memo.planning.predicting import Predictor
from memo.planning.request import PlanRequest
from planner.codec import decode, encode
from planner.contracts import Placement, SwapPlan, Tier
from planner.hardware import Hardware
from planner.plan import NoPlan

PROBE_S = 0.5
DISK_BYTES = 512 << 20
_TIERS = {"keep": Tier.DEVICE, "host": Tier.HOST, "ssd": Tier.SSD}


def probe(job: Job) -> Result:
    """This machine, with the disk of the spill directory."""
    machine = probe_machine([Path(job.spill_dir)], disk_bytes=DISK_BYTES, budget_s=PROBE_S)
    return Result(hardware=encode(hardware_of(machine)))


def predict(job: Job) -> Result:
    """Every case of one model and length, after some seconds of calibration."""
    hardware = decode(Hardware, job.hardware, "hardware")
    request = PlanRequest(
        name=job.model,
        config=config_of(job.model),
        tokens=job.tokens,
        node=Node(hardware, job.device),
        zero=0,
        offload_optimizer="none",
        find_longest=False,
        lay_out=False,
    )
    started_s = time.perf_counter()
    slowness = calibrated(request, build(job))
    calibration_s = time.perf_counter() - started_s
    predictor = Predictor(request, slowness=slowness)
    swaps = {
        name: _planned(predictor, job) if name == PLANNED else _uniform(predictor, name)
        for name in job.placements
    }
    found = {name: _predicted(predictor, swap) for name, swap in swaps.items()}
    return Result(predicted=found, calibration_s=calibration_s)


def _uniform(predictor: Predictor, placement: str) -> SwapPlan:
    return predictor.uniform(Placement(placement), _TIERS[SKELETAL[placement]])


def _planned(predictor: Predictor, job: Job) -> SwapPlan:
    """Sought for a device on which not everything fits; saved for the process that measures."""
    peaks = [_predicted(predictor, _uniform(predictor, name)).peak_bytes for name in PLACEMENTS]
    request = predictor.request
    node = request.node
    tight = replace(node.hardware, device_bytes=(min(peaks) + max(peaks)) // 2)
    plan = make(replace(request, node=Node(tight, node.device_kind))).result
    if isinstance(plan, NoPlan):
        raise memo.MemoError(f"no plan fits in {tight.device_bytes:,} bytes: {plan.missing_bytes}")
    plan.save(job.plan_path)
    return plan.swap


def _predicted(predictor: Predictor, swap: SwapPlan) -> Predicted:
    found = predictor.predictions(swap)
    return Predicted(
        step_s=found.step_s,
        exposed_s=sum(found.exposed_s.values()),
        optimizer_s=predictor.cost.optimizer_s,
        peak_bytes=found.peak_bytes[Tier.DEVICE],
        base_bytes=predictor.base_bytes,
    )


def main(job_path: Path, result_path: Path) -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore", memo.MemoWarning)  # layers that run whole are meant to
    job = Job.from_json(json.loads(job_path.read_text()))
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    if job.work is Work.PROBE:
        result = probe(job)
    elif job.work is Work.PREDICT:
        result = predict(job)
    else:
        result = Result(measured=measure(job))
    result_path.write_text(json.dumps(result.to_json()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

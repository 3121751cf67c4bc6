"""A traced step to and from JSON.

Scope: the version of the schema; fields are checked by `planner.codec`.
"""

from __future__ import annotations

import json

from planner.codec import PlanError, decode, encode, loads
from planner.trace.contracts import StepTrace

SCHEMA_VERSION = 1
"""Of a trace's JSON. It grows when a field changes its meaning, or goes."""


def trace_to_json(step: StepTrace) -> str:
    """The step as JSON, with its schema version."""
    return json.dumps({"memo_trace": SCHEMA_VERSION, **encode(step)}, allow_nan=False) + "\n"


def trace_from_json(text: str) -> StepTrace:
    """The step again.

    Raises:
        PlanError: for a text that is no trace, which names the field that is wrong.
    """
    data = loads(text, "the trace")
    if not isinstance(data, dict) or "memo_trace" not in data:
        raise PlanError("this is no trace: it has no 'memo_trace', the version of its schema")
    version = data.pop("memo_trace")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise PlanError(f"memo_trace is {version!r}: this version of memo reads {SCHEMA_VERSION}")
    return decode(StepTrace, data, "trace")

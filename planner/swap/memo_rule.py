"""MEMO's rule for how much of a layer is swapped.

Scope: the closed form. The mixed-integer program contains it as the case of one tier, uniform
layers, nothing in flight and no waiting.
"""

from __future__ import annotations

from planner.contracts import check_at_least


def memo_alpha(
    *,
    input_bytes: float,
    attention_bytes: float,
    other_bytes: float,
    layer_s: float,
    d2h_bytes_per_s: float,
    layers: int,
    host_bytes: float,
    resident_layers: int = 2,
) -> float | None:
    """The largest share alpha of a layer's rebuildable bytes that may go to the host.

    MEMO (SIGMOD 2025, arXiv 2407.12117), section 4.1: maximise alpha in [0, 1] so that
    `(input + attention + alpha * other) / rate <= layer_s`, the layer's forward time, and
    `(layers - 2) * (input + attention + alpha * other) <= host`. `resident_layers` are the last
    layers, whose bytes stay in the two rounding buffers.

    Returns:
        alpha; None when the skeletal bytes alone break the rule.

    Raises:
        ValueError: for a size or time below 0, or a rate or number of layers that is not above 0.
    """
    check_at_least(0, input_bytes=input_bytes, attention_bytes=attention_bytes)
    check_at_least(0, other_bytes=other_bytes, layer_s=layer_s, host_bytes=host_bytes)
    check_at_least(1, layers=layers)
    if not d2h_bytes_per_s > 0:
        raise ValueError(f"d2h_bytes_per_s is {d2h_bytes_per_s}: takes a number above 0")
    allowed_bytes = layer_s * d2h_bytes_per_s
    swapped_layers = layers - resident_layers
    if swapped_layers > 0:
        allowed_bytes = min(allowed_bytes, host_bytes / swapped_layers)
    left_bytes = allowed_bytes - input_bytes - attention_bytes
    if left_bytes < 0:
        return None
    return min(1.0, left_bytes / other_bytes) if other_bytes else 1.0

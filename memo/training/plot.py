"""The picture of the comparison: resident memory over one training step, a line for each case.

matplotlib comes with the extra `plot`, and is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from memo.training.contracts import CaseResult, Mode, RefusedInputError

MIB = 1024**2
GIB = 1024**3

# Okabe and Ito's colours, which stay apart for colour-blind readers.
_COLOURS: dict[Mode, str] = {
    "plain": "#D55E00",
    "checkpointing": "#56B4E9",
    "wrapped": "#009E73",
}
LABELS: dict[Mode, str] = {
    "plain": "plain",
    "checkpointing": "HF gradient checkpointing",
    "wrapped": "memo.wrap",
}


def draw_memory(results: Sequence[CaseResult], path: Path, *, title: str) -> bool:
    """Write the picture as PNG; cases without a timeline (they didn't fit) are left out.

    Returns whether there was anything to draw. Raises: RefusedInputError where matplotlib is
    missing.
    """
    drawn = [result for result in results if result.timeline]
    if not drawn:
        return False
    try:
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise RefusedInputError(
            "cannot draw the picture: matplotlib is missing; pip install 'memo-offload[plot]'"
        ) from exc
    figure = Figure(figsize=(9, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for result in drawn:
        seconds = [second for second, _ in result.timeline]
        sizes = [size / GIB for _, size in result.timeline]
        label = f"{LABELS[result.mode]}: peak {result.peak_bytes / GIB:.2f} GiB"
        axes.plot(seconds, sizes, color=_COLOURS[result.mode], linewidth=1.8, label=label)
    base = min(result.base_bytes for result in drawn) / GIB
    label = f"before the step (weights, optimizer, libraries): {base:.2f} GiB"
    axes.axhline(base, color="#777777", linestyle=":", linewidth=1.2, label=label)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel("seconds since the step began")
    axes.set_ylabel("resident memory of the process, GiB")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
    return True

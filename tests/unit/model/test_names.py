import json
import subprocess
import sys

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pretrain.config.model import ModelConfig
from pretrain.errors import CheckpointError
from pretrain.model.names import canonical_key, huggingface_names, megatron_shapes, megatron_tensor, to_huggingface
from pretrain.model.spec import ModelSpec

_FIELDS = [{}, {"num_query_groups": 2}, {"num_query_groups": 1, "tie_embeddings": True}]
_IDS = ["multi-head", "grouped", "tied"]


def _spec(**fields):
    config = ModelConfig(num_layers=2, hidden_size=32, ffn_hidden_size=40, num_attention_heads=4, **fields)
    return ModelSpec.from_config(config, 301)


def _huggingface(spec):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**spec.config_json(sequence_length=16)))
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fields", _FIELDS, ids=_IDS)
def test_names_and_shapes_are_those_of_llama_for_causal_lm(fields):
    spec = _spec(**fields)
    expected = {name: tuple(tensor.shape) for name, tensor in _huggingface(spec).items()}
    found = {}
    for key, shape in megatron_shapes(spec).items():
        found |= {name: tuple(tensor.shape) for name, tensor in to_huggingface(key, torch.zeros(shape), spec)}
        assert tuple(found)[-len(huggingface_names(key)) :] == huggingface_names(key)
    assert found == expected


@pytest.mark.parametrize("fields", _FIELDS, ids=_IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_bitwise(fields, dtype):
    spec = _spec(**fields)
    weights = {name: tensor.to(dtype) for name, tensor in _huggingface(spec).items()}
    back, keys = {}, []
    for key in megatron_shapes(spec):
        tensor = megatron_tensor(key, weights.__getitem__, spec)
        keys.append((key, tuple(tensor.shape)))
        assert tensor.dtype == dtype
        back |= dict(to_huggingface(key, tensor, spec))
    assert keys == list(megatron_shapes(spec).items())
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_query_key_and_value_of_a_group_lie_together():
    spec = _spec(num_query_groups=2)
    rows = torch.arange(spec.qkv_size).float()[:, None].expand(-1, 32)
    parts = dict(to_huggingface("decoder.layers.0.self_attention.linear_qkv.weight", rows, spec))
    first = {name.split(".")[-2]: tensor[:, 0].tolist() for name, tensor in parts.items()}
    assert first["q_proj"] == [*range(0, 16), *range(32, 48)]
    assert first["k_proj"] == [*range(16, 24), *range(48, 56)]
    assert first["v_proj"] == [*range(24, 32), *range(56, 64)]


def test_padded_rows_are_zero_going_in_and_gone_coming_out():
    spec = _spec()
    weights = _huggingface(spec)
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        tensor = megatron_tensor(key, weights.__getitem__, spec)
        assert tensor.shape == (384, 32) and not tensor[301:].any()
        assert to_huggingface(key, tensor, spec)[0][1].shape == (301, 32)


def test_a_norm_under_its_own_name_is_understood():
    spec = _spec()
    own, fused = "decoder.layers.1.pre_mlp_layernorm.weight", "decoder.layers.1.mlp.linear_fc1.layer_norm_weight"
    assert canonical_key(own) == fused and canonical_key(fused) == fused
    assert to_huggingface(own, torch.ones(32), spec)[0][0] == "model.layers.1.post_attention_layernorm.weight"


def test_strangers_and_wrong_shapes_are_refused():
    spec = _spec()
    with pytest.raises(CheckpointError, match="no place"):
        to_huggingface("decoder.layers.0.router.weight", torch.zeros(1), spec)
    with pytest.raises(CheckpointError, match=r"shape \(301, 32\)"):
        to_huggingface("embedding.word_embeddings.weight", torch.zeros(301, 32), spec)
    with pytest.raises(CheckpointError, match="shape"):
        to_huggingface("decoder.layers.2.mlp.linear_fc2.weight", torch.zeros(32, 40), spec)
    weights = _huggingface(spec) | {"model.layers.0.self_attn.k_proj.weight": torch.zeros(16, 32)}
    with pytest.raises(CheckpointError, match=r"k_proj.weight has shape \(16, 32\)"):
        megatron_tensor("decoder.layers.0.self_attention.linear_qkv.weight", weights.__getitem__, spec)


_MEGATRON = """
import json, sys
import torch.distributed as dist
from pretrain.engine.device import prepare_device
prepare_device()
from megatron.core import parallel_state
from pretrain.config.model import ModelConfig
from pretrain.config.run import RunConfig
from pretrain.engine.sharded.blocks import blocks_of
from pretrain.model.gpt import build_chunks, transformer_config
from pretrain.model.spec import ModelSpec
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
parallel_state.initialize_model_parallel()
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
model_parallel_cuda_manual_seed(0)
shapes = []
for tie in (False, True):
    sizes = dict(num_layers=2, hidden_size=32, ffn_hidden_size=40, num_attention_heads=4)
    config = RunConfig(model=ModelConfig(**sizes, tie_embeddings=tie, num_query_groups=2))
    config.precision.compute = "fp32"
    spec = ModelSpec.from_config(config.model, 301)
    chunks = build_chunks(config, spec, transformer_config(config, spec))
    shapes.append({b.key: b.global_shape for blocks in blocks_of(chunks).values() for b in blocks})
print(json.dumps(shapes))
"""


@pytest.mark.slow  # imports megatron-core in a process of its own
def test_keys_and_shapes_are_those_megatron_produces():
    done = subprocess.run([sys.executable, "-c", _MEGATRON], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for tie, produced in zip((False, True), json.loads(done.stdout.splitlines()[-1]), strict=True):
        expected = megatron_shapes(_spec(num_query_groups=2, tie_embeddings=tie))
        assert {key: tuple(shape) for key, shape in produced.items()} == expected

"""Folders as LLM360, OpenLLaMA and m-a-p published them: pickled shards, half precision, keys of older transformers."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from pretrain.checkpoint.huggingface_config import read_huggingface_config
from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.parity import export_log_probs
from pretrain.checkpoint.pickled import read_pickled
from pretrain.errors import CheckpointError
from pretrain.model.names import megatron_shapes, megatron_tensor
from tests.support.published import publish
from tests.unit.checkpoint.live import VOCABULARY, make_model, make_spec

LENGTH = 64


def llama(**fields):
    """As many key/value heads as heads: folders of those days had no `num_key_value_heads`."""
    return make_spec(num_query_groups=4, **fields)


def published(folder, **options):
    """The model of `live.py` as a folder, and its weights as they are in the files."""
    config = llama().config_json(sequence_length=LENGTH)
    return publish(folder, make_model(llama()).state_dict(), config, **options)


@pytest.mark.parametrize(
    ("dtype", "shards", "length_key"),
    [
        (torch.bfloat16, 3, "max_sequence_length"),  # LLM360/Amber, whose config is huggyllama's
        (torch.float16, 2, "max_position_embeddings"),  # openlm-research
        (torch.float16, 1, "max_position_embeddings"),
        (torch.float32, 1, "max_position_embeddings"),
    ],
)
def test_a_published_folder_is_the_model_that_transformers_loads(tmp_path, dtype, shards, length_key):
    weights = published(tmp_path / "m", dtype=dtype, shards=shards, length_key=length_key)
    found = read_huggingface_config(tmp_path / "m")
    assert found.max_length == LENGTH and found.compute == ("fp32" if dtype == torch.float32 else "bf16")
    assert found.spec.vocab_size == VOCABULARY and found.spec.num_query_groups == 4
    source = HuggingFaceSource(tmp_path / "m", found.spec)
    for key in megatron_shapes(found.spec):
        whole = np.empty(source.shape(key), np.float32)
        source.region(key, "param", (0,) * whole.ndim, whole)
        expected = megatron_tensor(key, lambda name: weights[name].float(), found.spec)
        assert np.array_equal(whole, expected.numpy()), key
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 20))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = loaded(torch.from_numpy(tokens)).logits.double().log_softmax(-1).numpy()
    # The same weights in fp32 through the same code: only the fusing of layers differs, not a sum.
    assert np.array_equal(export_log_probs(tmp_path / "m", found.spec, tokens), expected)


def test_safetensors_are_taken_where_both_are_there(tmp_path):
    model = make_model(llama())
    published(tmp_path / "m", shards=1)
    model.save_pretrained(tmp_path / "m")
    (tmp_path / "m/pytorch_model.bin").write_bytes(b"never read")
    weight = HuggingFaceSource(tmp_path / "m", llama()).weight("model.norm.weight")
    assert torch.equal(weight, model.model.norm.weight.detach())


def test_tensors_are_mapped_and_take_memory_when_they_are_read(tmp_path):
    published(tmp_path / "m", shards=1)
    found = read_pickled(tmp_path / "m/pytorch_model.bin")
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith("/m/pytorch_model.bin")]
    mapped = [(int(low, 16), int(high, 16)) for low, high in ranges]
    for tensor in found.values():
        assert any(low <= tensor.data_ptr() < high for low, high in mapped)


class _Calls:
    """Unpickled without restriction, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model.norm.weight": torch.ones(2), "more": _Calls(tmp_path / "made")}, path)
    with pytest.raises(
        CheckpointError, match=r"pytorch_model\.bin asks for \w*io\.open, which tensors do not need"
    ) as e:
        read_pickled(path)
    assert not (tmp_path / "made").exists()
    assert "weights_only" not in str(e.value), "nobody is advised to trust it"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "no dictionary of tensors"),
        ({"a": torch.ones(2), "b": 3}, "b is no dense tensor"),
        ({"a": torch.ones(2).to_sparse()}, "a is no dense tensor"),
        ({"a": torch.ones(2, device="meta")}, "a is no dense tensor"),
        ({"a": torch.ones(2, dtype=torch.int8)}, "a is int8, no floating-point numbers"),
    ],
)
def test_what_is_no_dictionary_of_dense_tensors_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=message):
        read_pickled(tmp_path / "x.bin")


def test_a_damaged_file_is_a_typed_error_that_names_it_or_still_tensors(tmp_path):
    path = tmp_path / "x.bin"
    torch.save({"a": torch.ones(500)}, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", b"hello", whole[:-1], whole[: len(whole) // 2], pickle.dumps({"a": 1})]
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(0, 400)] ^= 1 << rng.integers(0, 8)  # the pickle lies at the front
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            assert all(isinstance(tensor, torch.Tensor) for tensor in read_pickled(path).values())
        except CheckpointError as error:
            refused += str(path) in str(error)
    assert refused >= 5
    with pytest.raises(CheckpointError, match=r"none\.bin cannot be read"):
        read_pickled(tmp_path / "none.bin")


def test_pickles_from_before_torch_1_6_are_refused_with_a_remedy(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.bin", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=r"x\.bin cannot be read.*as safetensors"):
        read_pickled(tmp_path / "x.bin")


def test_missing_tensors_and_files_outside_the_folder_are_refused(tmp_path):
    published(tmp_path / "m", shards=1)
    torch.save({"other": torch.ones(2)}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.norm\.weight'"):
        HuggingFaceSource(tmp_path / "m", llama()).weight("model.norm.weight")
    (tmp_path / "m/pytorch_model.bin").unlink()
    index = tmp_path / "m/pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../other.bin"}}))
    with pytest.raises(CheckpointError, match=r"no tensor 'model\.norm\.weight'"):
        HuggingFaceSource(tmp_path / "m", llama()).weight("model.norm.weight")
    index.write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        HuggingFaceSource(tmp_path / "m", llama())
    index.unlink()
    with pytest.raises(CheckpointError, match=r"has no weights \(model\.safetensors or pytorch_model\.bin"):
        HuggingFaceSource(tmp_path / "m", llama())


def read_all(folder):
    source = HuggingFaceSource(folder, llama())
    for key in megatron_shapes(llama()):
        whole = np.empty(source.shape(key), np.float32)
        source.region(key, "param", (0,) * whole.ndim, whole)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.norm.weight", lambda w: w.index_fill(0, torch.tensor(3), torch.nan), "values that are not finite"),
        ("model.layers.2.mlp.up_proj.weight", lambda w: w * torch.inf, "values that are not finite"),
        ("lm_head.weight", lambda w: torch.cat([w, w[:12]]), rf"shape \({VOCABULARY + 12}, 32\)"),  # padded rows
        ("model.embed_tokens.weight", lambda w: w[:-1].clone(), rf"shape \({VOCABULARY - 1}, 32\)"),
        ("model.layers.0.mlp.down_proj.weight", lambda w: w.T.contiguous(), r"shape \(48, 32\)"),
    ],
)
def test_weights_that_are_not_finite_or_of_another_shape_are_refused_by_name(tmp_path, name, change, message):
    weights = published(tmp_path / "m", shards=1)
    read_all(tmp_path / "m")
    torch.save({**weights, name: change(weights[name])}, tmp_path / "m/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message) as error:
        read_all(tmp_path / "m")
    assert name in str(error.value)


@pytest.mark.parametrize("rope", [{"rope_scaling": "linear"}, {"rope_parameters": [1]}])
def test_rotary_settings_that_are_no_object_are_refused(tmp_path, rope):
    published(tmp_path / "m")
    path = tmp_path / "m/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **rope}))
    with pytest.raises(CheckpointError, match=f"{next(iter(rope))}=.* is not a JSON object"):
        HuggingFaceSource(tmp_path / "m", llama())


def test_keys_that_older_folders_lack_or_leave_null_mean_what_they_mean_to_transformers(tmp_path):
    published(tmp_path / "m")
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    del config["rms_norm_eps"], config["tie_word_embeddings"]
    path.write_text(json.dumps({**config, "rope_scaling": None, "architectures": ["LLaMAForCausalLM"]}))
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "m").config
    spec = read_huggingface_config(tmp_path / "m").spec
    assert (spec.norm_epsilon, spec.tie_embeddings) == (loaded.rms_norm_eps, loaded.tie_word_embeddings)
    assert spec == llama(init_std=spec.init_std)
    read_all(tmp_path / "m")

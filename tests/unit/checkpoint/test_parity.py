"""The gate: an export that does not say what the live model said is not published, whatever is wrong with it."""

import dataclasses
import json
import os
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from pretrain.checkpoint import huggingface, parity
from pretrain.checkpoint.__main__ import main
from pretrain.checkpoint.huggingface import export_weights
from pretrain.checkpoint.reference import Reference, prompts, take_reference
from pretrain.errors import CheckpointError
from pretrain.model.names import megatron_shapes, megatron_tensor
from tests.unit.checkpoint.live import LAYERS, VOCABULARY, Live, make_model, make_spec
from tests.unit.checkpoint.ranks import make_meta, save, scattered


def _reference(model, compute="fp32"):
    return take_reference(Live(model), vocab_size=VOCABULARY, compute=compute)


def _options(model, tokenizer_model, **more):
    return {"tokenizer_model": tokenizer_model, "sequence_length": 64, "reference": _reference(model), **more}


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True}, {"num_query_groups": 4}], ids=["gqa", "tied", "mha"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["one file", "sharded"])
def test_a_right_export_is_published_and_its_card_has_the_figure(tmp_path, tokenizer_model, fields, max_shard_bytes):
    spec = make_spec(**fields)
    model = make_model(spec)
    weights = dict(model.state_dict())
    if spec.tie_embeddings:
        weights.pop("lm_head.weight")
    options = _options(model, tokenizer_model, max_shard_bytes=max_shard_bytes)
    export = export_weights(weights.items(), spec, tmp_path / "o", **options)
    assert export.parity is not None and export.parity.num_positions == 64
    assert export.parity.largest_difference <= 5e-6  # fp32 sum order, and the record is fp32
    card = (export.folder / "README.md").read_text()
    assert f"{export.parity.largest_difference:.2g} nats" in card and "fp32 compute" in card and "64 positions" in card


def test_the_gate_computes_what_from_pretrained_computes_bitwise(tmp_path, tokenizer_model):
    spec = make_spec()
    model = make_model(spec)
    export = export_weights(
        model.state_dict().items(), spec, tmp_path / "o", **_options(model, tokenizer_model, dtype="bfloat16")
    )
    loaded = AutoModelForCausalLM.from_pretrained(export.folder, dtype=torch.float32).eval()
    tokens_BS = prompts(VOCABULARY)
    with torch.no_grad():
        expected = loaded(torch.from_numpy(tokens_BS)).logits.double().log_softmax(-1).numpy()
    assert np.array_equal(parity.export_log_probs(export.folder, spec, tokens_BS), expected)


def _swap(a, b):
    def tamper(weights):
        return {**weights, a: weights[b], b: weights[a]}

    return tamper


def _change(name, function):
    return lambda weights: {**weights, name: function(weights[name])}


_ATTENTION, _MLP = "model.layers.1.self_attn", "model.layers.1.mlp"
TAMPERED = {
    "keys and values swapped": _swap(f"{_ATTENTION}.k_proj.weight", f"{_ATTENTION}.v_proj.weight"),
    "gate and up swapped": _swap(f"{_MLP}.gate_proj.weight", f"{_MLP}.up_proj.weight"),
    "layers swapped": _swap("model.layers.0.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"),
    "heads in another order": _change(
        f"{_ATTENTION}.q_proj.weight", lambda w: w.view(4, 8, 32).flip(0).reshape(32, 32)
    ),
    "rotary halves interleaved": _change(
        f"{_ATTENTION}.k_proj.weight", lambda w: w.view(2, 2, 4, 32).transpose(1, 2).reshape(16, 32)
    ),
    "a norm forgotten": _change("model.norm.weight", torch.ones_like),
    "embeddings tied": lambda weights: {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()},
    "one number a percent off": _change(
        "model.layers.0.mlp.up_proj.weight", lambda w: w * torch.where(w == w.max(), 1.01, 1.0)
    ),
}


@pytest.mark.parametrize("tamper", TAMPERED.values(), ids=TAMPERED.keys())
def test_a_wrong_export_is_refused_and_an_older_one_stays(tmp_path, tokenizer_model, tamper):
    spec = make_spec()
    model = make_model(spec)
    options, weights = _options(model, tokenizer_model), dict(model.state_dict())
    export_weights(weights.items(), spec, tmp_path / "o", **options)
    (tmp_path / "o" / "README.md").write_text("older")
    with pytest.raises(CheckpointError, match="live model") as refused:
        export_weights(tamper(weights).items(), spec, tmp_path / "o", **options)
    message = str(refused.value)
    assert str(tmp_path / "o") in message and "position" in message and "checkpoint.export_tolerance" in message
    assert (tmp_path / "o" / "README.md").read_text() == "older" and os.listdir(tmp_path) == ["o"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, tokenizer_model, value):
    model = make_model(make_spec())
    weights = _change("model.norm.weight", lambda w: torch.where(w == w.max(), value, w))(dict(model.state_dict()))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values that are not finite as float32"):
        export_weights(weights.items(), make_spec(), tmp_path / "o", **_options(model, tokenizer_model))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rope_theta", 500.0, "rope_theta is 500.0"),
        ("vocab_size", 499, "vocab_size is 499"),
        ("head_dim", 16, "does not accept the weights of model.layers.0"),
        ("pretraining_tp", 1, None),
    ],
)
def test_a_wrong_config_json_is_refused(tmp_path, tokenizer_model, monkeypatch, name, value, message):
    spec = make_spec()
    model = make_model(spec)
    write = huggingface._write_json

    def tampered(path, values):
        write(path, values | {name: value} if path.name == "config.json" else values)

    monkeypatch.setattr(huggingface, "_write_json", tampered)
    options = _options(model, tokenizer_model)
    if message is None:
        export_weights(model.state_dict().items(), spec, tmp_path / "o", **options)
        return
    with pytest.raises(CheckpointError, match=message):
        export_weights(model.state_dict().items(), spec, tmp_path / "o", **options)
    assert os.listdir(tmp_path) == []


def test_a_live_model_that_has_diverged_is_not_exported(tmp_path, tokenizer_model):
    spec = make_spec()
    model = make_model(spec)
    values = np.full(4096, np.nan, "<f4")
    options = _options(model, tokenizer_model) | {"reference": Reference(1, "bf16", values.tobytes())}
    with pytest.raises(CheckpointError, match="nan nats off"):
        export_weights(model.state_dict().items(), spec, tmp_path / "o", **options)


def test_rounding_is_allowed_for_and_the_tolerance_can_be_given(tmp_path, tokenizer_model):
    spec = make_spec()
    model = make_model(spec)
    options, weights = _options(model, tokenizer_model), list(model.state_dict().items())
    rounded = export_weights(weights, spec, tmp_path / "o", dtype="bfloat16", **options).parity
    assert 1e-4 < rounded.largest_difference < rounded.tolerance < 0.5
    with pytest.raises(CheckpointError, match="0.0001 are allowed"):
        export_weights(weights, spec, tmp_path / "o", dtype="bfloat16", tolerance=1e-4, **options)
    live = make_model(spec).bfloat16()  # as a run with bf16 compute answers
    options["reference"] = _reference(live, "bf16")
    bf16 = export_weights(weights, spec, tmp_path / "o", **options).parity
    assert 1e-4 < bf16.largest_difference < bf16.tolerance < 0.5 and bf16.compute == "bf16"
    options["reference"] = dataclasses.replace(options["reference"], compute="fp32")
    with pytest.raises(CheckpointError, match="was not exported"):
        export_weights(weights, spec, tmp_path / "o", **options)


@pytest.mark.parametrize("reference", [None, Reference(2, "fp32", b"")], ids=["none", "of another version"])
def test_without_a_reference_the_card_says_so(tmp_path, tokenizer_model, reference):
    spec = make_spec()
    model = make_model(spec)
    options = _options(model, tokenizer_model) | {"reference": reference}
    export = export_weights(model.state_dict().items(), spec, tmp_path / "o", **options)
    assert export.parity is None and "was not measured" in (export.folder / "README.md").read_text()


def test_one_layer_is_in_memory_at_a_time(tmp_path, tokenizer_model, monkeypatch):
    spec = make_spec()
    model = make_model(spec)
    export = export_weights(model.state_dict().items(), spec, tmp_path / "o", **_options(model, tokenizer_model))
    modules, held = {}, []

    def watched(name, get):
        fill = parity_filling(name, get)

        def fill_and_look(module, inputs):
            modules[name] = module
            fill(module, inputs)
            held.append({key for key, m in modules.items() if any(not p.is_meta for p in m.parameters())})

        return fill_and_look

    parity_filling = parity._filling
    monkeypatch.setattr(parity, "_filling", watched)
    parity.export_log_probs(export.folder, spec, prompts(VOCABULARY))
    layers = [f"model.layers.{index}" for index in range(LAYERS)]
    assert held == [{name} for name in ("model.embed_tokens", *layers, "model.norm", "lm_head")]
    assert all(p.is_meta for module in modules.values() for p in module.parameters())


def test_other_threads_and_random_state_do_not_notice(tmp_path, tokenizer_model, monkeypatch):
    """In the background thread of a training process: what another thread builds meanwhile is real and unchanged."""
    spec = make_spec()
    model = make_model(spec)
    export = export_weights(model.state_dict().items(), spec, tmp_path / "o", **_options(model, tokenizer_model))
    before = (torch.get_rng_state(), random.getstate(), torch.get_default_dtype())
    expected = parity.export_log_probs(export.folder, spec, prompts(VOCABULARY))
    after = (torch.get_rng_state(), random.getstate(), torch.get_default_dtype())
    assert torch.equal(after[0], before[0]) and after[1:] == before[1:]
    entered, leave, found = threading.Event(), threading.Event(), []
    original = parity._WithoutMemory.__exit__

    def paused(self, *arguments):
        entered.set()
        assert leave.wait(60)
        return original(self, *arguments)

    monkeypatch.setattr(parity._WithoutMemory, "__exit__", paused)
    thread = threading.Thread(
        target=lambda: found.append(parity.export_log_probs(export.folder, spec, prompts(VOCABULARY)))
    )
    thread.start()
    assert entered.wait(60)
    linear = nn.Linear(2, 2)  # as anything on the training thread
    assert not linear.weight.is_meta and not torch.ones(2).is_meta and torch.is_grad_enabled()
    assert torch.utils._device.CURRENT_DEVICE is None, "compiled functions guard on it"
    leave.set()
    thread.join()
    assert np.array_equal(found[0], expected)


def _checkpoint(root, spec, model, reference):
    weights = model.state_dict()
    state = {key: {"param": megatron_tensor(key, weights.__getitem__, spec)} for key in megatron_shapes(spec)}
    meta = dataclasses.replace(make_meta(4, spec=spec), reference=reference)
    return save(root, 4, scattered(state, 3, 0), meta=meta, kinds=("param",))[0]


def test_the_command_line_gates_a_checkpoint_that_holds_a_reference(tmp_path, tokenizer_model, capsys, monkeypatch):
    spec = make_spec()
    model = make_model(spec)
    path = _checkpoint(tmp_path / "run", spec, model, _reference(model))
    arguments = ["export", str(path), str(tmp_path / "o"), "--tokenizer", str(tokenizer_model)]
    assert main(arguments) == 0
    assert "on 64 positions" in capsys.readouterr().out
    assert main([*arguments, "--tolerance", "1e-12"]) == 1
    assert "1e-12 are allowed" in capsys.readouterr().err
    assert main(["inspect", str(path)]) == 0 and "live model, fp32 compute" in capsys.readouterr().out
    right = huggingface.to_huggingface

    def wrong(key, tensor, spec):
        pairs = right(key, tensor, spec)
        names = [name for name, _ in pairs]
        if key.endswith("linear_fc1.weight"):
            names.reverse()
        return [(name, tensor) for name, (_, tensor) in zip(names, pairs, strict=True)]

    monkeypatch.setattr(huggingface, "to_huggingface", wrong)
    before = sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "o").iterdir())
    assert main(arguments) == 1
    assert "nats off" in capsys.readouterr().err
    assert sorted((f.name, f.stat().st_mtime_ns) for f in (tmp_path / "o").iterdir()) == before
    card = json.loads((tmp_path / "o" / "config.json").read_text())
    assert card["architectures"] == ["LlamaForCausalLM"] and sorted(os.listdir(tmp_path)) == ["o", "run"]


def test_the_command_line_says_when_parity_was_not_measured(tmp_path, tokenizer_model, capsys):
    spec = make_spec()
    model = make_model(spec)
    path = _checkpoint(tmp_path / "run", spec, model, None)
    assert main(["export", str(path), str(tmp_path / "o"), "--tokenizer", str(tokenizer_model)]) == 0
    assert "was not measured" in capsys.readouterr().out

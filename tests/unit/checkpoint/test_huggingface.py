import json
import os
import random
import shutil

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from pretrain.checkpoint.huggingface import export_checkpoint, export_weights, huggingface_weights
from pretrain.checkpoint.huggingface_source import HuggingFaceSource
from pretrain.checkpoint.reader import CheckpointReader
from pretrain.checkpoint.tokenizer_files import read_sentencepiece, write_tokenizer_files
from pretrain.config.model import ModelConfig
from pretrain.errors import CheckpointError, TokenizerError
from pretrain.model.names import megatron_shapes
from pretrain.model.spec import ModelSpec
from tests.unit.checkpoint.ranks import make_meta, save, scattered

VOCABULARY = 500


def _spec(**fields):
    sizes = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 4, "vocab_multiple": 128}
    return ModelSpec.from_config(ModelConfig(**sizes | {"rope_base": 5000.0} | fields), VOCABULARY)


def _model(spec):
    torch.manual_seed(0)
    values = spec.config_json(sequence_length=64)
    model = LlamaForCausalLM(LlamaConfig(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def _imported(folder, spec):
    """Every Megatron tensor of a Hugging Face folder, read as a run reads it that starts from there."""
    source, tensors = HuggingFaceSource(folder, spec), {}
    for key in megatron_shapes(spec):
        whole = np.empty(source.shape(key), np.float32)
        source.region(key, "param", (0,) * whole.ndim, whole)
        tensors[key] = torch.from_numpy(whole)
    return tensors


def _checkpoint(root, spec, folder):
    """A weights-only checkpoint of a Hugging Face folder, scattered over three ranks."""
    state = {key: {"param": tensor} for key, tensor in _imported(folder, spec).items()}
    results = save(root, 4, scattered(state, 3, 0), meta=make_meta(4, spec=spec), kinds=("param",))
    return CheckpointReader(results[0])


@pytest.mark.parametrize(
    "fields",
    [{}, {"num_query_groups": 2}, {"num_query_groups": 1, "tie_embeddings": True}],
    ids=["multi-head", "grouped", "tied"],
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000], ids=["one file", "sharded"])
def test_a_model_comes_back_bitwise_through_a_checkpoint(tmp_path, tokenizer_model, fields, max_shard_bytes):
    spec = _spec(**fields)
    model = _model(spec)
    model.save_pretrained(tmp_path / "source", max_shard_size=50_000)
    reader = _checkpoint(tmp_path / "run", spec, tmp_path / "source")
    options = {"tokenizer_model": tokenizer_model, "max_shard_bytes": max_shard_bytes}
    out = export_checkpoint(reader, tmp_path / "out", **options).folder
    again, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected, found = model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert again.config.max_position_embeddings == 64
    assert again.config.rope_parameters["rope_theta"] == 5000.0
    tokens = torch.randint(0, VOCABULARY, (2, 20))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, again.eval()(tokens).logits)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert files == ["model.safetensors"] or (files[0].startswith("model-00001-of-0") and len(files) > 3)
    assert (out / "README.md").read_text().startswith("---") and "Step 4, 4_000 tokens." in (
        out / "README.md"
    ).read_text()
    assert sorted(os.listdir(tmp_path)) == ["out", "run", "source"]


def test_bfloat16_is_the_rounded_weight_and_loads_as_such(tmp_path, tokenizer_model):
    spec = _spec()
    model = _model(spec)
    weights = list(model.state_dict().items())
    out = export_weights(
        weights, spec, tmp_path / "o", tokenizer_model=tokenizer_model, sequence_length=64, dtype="bfloat16"
    ).folder
    again = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert all(torch.equal(value.bfloat16(), again[name]) for name, value in weights)


def test_an_export_replaces_the_folder_as_a_whole_or_not_at_all(tmp_path, tokenizer_model):
    spec = _spec()
    weights = list(_model(spec).state_dict().items())
    options = {"tokenizer_model": tokenizer_model, "sequence_length": 64}
    out = export_weights(weights, spec, tmp_path / "o", **options).folder
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "config.json").write_text("stale")
    for bad, message in ((weights[:-1], "1 weights did not come"), ([*weights, weights[0]], "came twice")):
        with pytest.raises(CheckpointError, match=message):
            export_weights(bad, spec, out, **options)
        assert (out / "config.json").read_text() == "stale" and os.listdir(tmp_path) == ["o"]
    export_weights(weights, spec, out, **options)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole and os.listdir(tmp_path) == ["o"]


def test_an_export_replaces_nothing_that_no_export_wrote(tmp_path, tokenizer_model):
    spec = _spec()
    weights = list(_model(spec).state_dict().items())
    options = {"tokenizer_model": tokenizer_model, "sequence_length": 64}
    out = export_weights(weights, spec, tmp_path / "o", **options).folder
    foreign = tmp_path / "home"
    foreign.mkdir()
    for folder in (out, foreign):
        (folder / "notes.txt").write_text("mine")
        with pytest.raises(CheckpointError, match=r"holds notes.txt, which no export wrote. Name a folder"):
            export_weights(weights, spec, folder, **options)
        assert (folder / "notes.txt").read_text() == "mine"
    (foreign / "notes.txt").unlink()
    assert export_weights(weights, spec, foreign, **options).folder == foreign


def test_a_tokenizer_of_another_size_and_an_unknown_dtype_are_refused(tmp_path, tokenizer_model):
    spec = ModelSpec.from_config(ModelConfig(num_layers=1, hidden_size=8, num_attention_heads=2), 499)
    options = {"tokenizer_model": tokenizer_model, "sequence_length": 64}
    with pytest.raises(CheckpointError, match="500 pieces, the model 499"):
        export_weights([], spec, tmp_path / "o", **options)
    with pytest.raises(CheckpointError, match="float32, bfloat16"):
        export_weights([], spec, tmp_path / "o", dtype="int8", **options)


def test_a_disk_that_refuses_leaves_no_half_export(tmp_path, tokenizer_model):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="was not exported"):
        export_weights([], _spec(), tmp_path / "file" / "o", tokenizer_model=tokenizer_model, sequence_length=64)


def test_a_model_of_another_shape_is_not_imported(tmp_path):
    spec = _spec()
    _model(spec).save_pretrained(tmp_path / "m")
    for fields, message in (
        ({"num_layers": 3}, "num_hidden_layers is 2, not 3"),
        ({"rope_base": 1e4}, "rope_theta is 5000.0, not 10000.0"),
        ({"tie_embeddings": True}, "tie_word_embeddings is False, not True"),
    ):
        with pytest.raises(CheckpointError, match=message):
            HuggingFaceSource(tmp_path / "m", _spec(**fields))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="cannot be read"):
        _imported(tmp_path / "m", spec)
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        _imported(tmp_path / "m", spec)
    index = {"weight_map": {"model.embed_tokens.weight": "../secret.safetensors"}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no tensor 'model.embed_tokens.weight'"):
        _imported(tmp_path / "m", spec)


def test_weights_are_streamed_in_hugging_face_names(tmp_path):
    spec = _spec(num_query_groups=2)
    model = _model(spec)
    model.save_pretrained(tmp_path / "m")
    reader = _checkpoint(tmp_path / "run", spec, tmp_path / "m")
    streamed = dict(huggingface_weights(reader))
    assert streamed.keys() == model.state_dict().keys()


_PIECES = [
    "the",
    "  ",
    " ",
    "   ",
    "\n",
    "\n\n",
    "\t",
    "\t\t",
    "def",
    "f(x):",
    "你好",
    "世界",
    "漢",
    "😀",
    "👩‍👩‍👧",
    "a",
    "aa",
]
_PIECES += ["é", "123", "    return", "====", "<0x0A>", "\r\n", "\x00", ".", "\u00a0", "ﬁ"]


@pytest.mark.parametrize("add_bos", [False, True])
def test_auto_tokenizer_gives_the_ids_of_sentencepiece(tmp_path, tokenizer_model, add_bos):
    write_tokenizer_files(tokenizer_model, tmp_path, add_bos=add_bos)
    (tmp_path / "config.json").write_text(json.dumps(_spec().config_json(sequence_length=64)))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    reference, rng = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model)), random.Random(0)
    texts = ["", " ", "\n", " leading", "trailing  ", *_PIECES]
    texts += ["".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 14))) for _ in range(3000)]
    for text in texts:
        expected = [1] * add_bos + reference.encode(text)
        assert tokenizer(text)["input_ids"] == expected, repr(text)
        if not add_bos:
            assert tokenizer.decode(expected) == reference.decode(expected), repr(text)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert len(tokenizer) == VOCABULARY


def test_the_protobuf_is_read_as_sentencepiece_reads_it(tokenizer_model):
    model = read_sentencepiece(tokenizer_model)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_model))
    assert [piece[0] for piece in model.pieces] == [reference.id_to_piece(i) for i in range(VOCABULARY)]
    assert [piece[1] for piece in model.pieces] == [reference.get_score(i) for i in range(VOCABULARY)]
    assert (model.unk_id, model.bos_id, model.eos_id) == (0, 1, 2)
    assert model.is_bpe and model.byte_fallback and model.add_dummy_prefix and model.is_convertible


def test_a_tokenizer_that_cannot_be_expressed_is_left_to_transformers(tmp_path):
    with (tmp_path / "suffix.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["some words of text", "and a few more words"] * 5),
            model_writer=file,
            vocab_size=40,
            hard_vocab_limit=False,
            treat_whitespace_as_suffix=True,
            minloglevel=2,
        )
    folder = tmp_path / "out"
    folder.mkdir()
    write_tokenizer_files(tmp_path / "suffix.model", folder, add_bos=False)
    assert sorted(os.listdir(folder)) == ["tokenizer.model", "tokenizer_config.json"]


@pytest.mark.parametrize("data", [b"", b"hello world", b"\x0a\xff", b"\x00" * 50, b"\x0a\x02\x10\x01"])
def test_what_is_no_sentencepiece_model_is_named(tmp_path, data):
    (tmp_path / "t.model").write_bytes(data)
    with pytest.raises(TokenizerError, match="t.model"):
        read_sentencepiece(tmp_path / "t.model")
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_sentencepiece(tmp_path / "none.model")
    shutil.rmtree(tmp_path)

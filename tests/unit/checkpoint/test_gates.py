"""A folder's vocabulary is one number: no rows that training's padding added, in any of its files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pretrain.checkpoint.gates import vocabulary_problem
from pretrain.checkpoint.huggingface import export_weights
from tests.unit.checkpoint.live import VOCABULARY, make_model, make_spec


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tokenizer_model):
    spec = make_spec()
    out = tmp_path_factory.mktemp("gates") / "release"
    weights = make_model(spec).state_dict().items()
    options = {"tokenizer_model": tokenizer_model, "sequence_length": 64, "max_shard_bytes": 40_000}
    return export_weights(weights, spec, out, **options).folder


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_rows_of_padding_are_found_in_whichever_file_they_are(tmp_path, sound, name):
    assert vocabulary_problem(sound) is None
    folder = shutil.copytree(sound, tmp_path / "release")
    (path,) = [path for path in folder.glob("*.safetensors") if name in load_file(path)]
    tensors = load_file(path)
    padded = torch.cat([tensors[name], torch.zeros(12, tensors[name].shape[1])])
    save_file(tensors | {name: padded}, path)
    problem = vocabulary_problem(folder)
    assert problem == f"{path.name}: rows of {name} is {VOCABULARY + 12}, but the tokenizer has {VOCABULARY} pieces"


def test_a_vocab_size_that_is_not_the_tokenizers_is_found(tmp_path, sound):
    folder = shutil.copytree(sound, tmp_path / "release")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    assert "config.json: vocab_size is 512" in str(vocabulary_problem(folder))
    assert "vocab_size is 512" in str(vocabulary_problem(folder, num_pieces=VOCABULARY))


def test_a_folder_without_embedding_or_tokenizer_is_explained(tmp_path, sound):
    folder = shutil.copytree(sound, tmp_path / "release")
    (folder / "tokenizer.model").unlink()
    assert "tokenizer.model cannot be read" in str(vocabulary_problem(folder))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert "has no model.embed_tokens.weight" in str(vocabulary_problem(folder, num_pieces=VOCABULARY))

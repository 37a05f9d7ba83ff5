"""A small SentencePiece tokenizer with LLaMA's settings, trained once."""

import inspect
import textwrap

import pytest


@pytest.fixture(scope="session")
def tokenizer_model(tmp_path_factory):
    import sentencepiece

    lines = inspect.getsource(textwrap).splitlines() + ["你好,世界。这是一个测试", "a  b   c    d"] * 20
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type="bpe",
            vocab_size=500,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            pad_id=-1,
            minloglevel=2,
        )
    return path

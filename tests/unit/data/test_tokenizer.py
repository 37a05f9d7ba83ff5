"""The tokenizer against SentencePiece itself and against the bytes of the text."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.errors import DataError, TokenizerError

AWKWARD = (
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "  leading",
    "trailing   ",
    "a  b   c\t\td",
    "line\n    indented\n\n\tdef f():\n\t\treturn 1\r\n",
    "数据 很重要。\u3000全角",
    "🙂🚀👩‍👩‍👧 e\u0301 \u202e",
    "\x00\x01\ufeff\ufffd\U0010ffff",
    "<s> </s> <unk> <0x0A>",
    "3.14159 12,345",
    "\u2581",
    "\u2581\u2581 \u2581x\u2581 ",
    "a\u2581b",
)


def random_texts(count: int) -> list[str]:
    rng = random.Random(5)
    alphabet = " \n\t aeiourstn the.,(){}=_0123é数🙂\u2581\u00a0" + "".join(AWKWARD)
    return ["".join(rng.choices(alphabet, k=rng.randint(1, 80))) for _ in range(count)]


def plain(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)


def test_every_text_decodes_to_itself(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in (*AWKWARD, *random_texts(500), *texts):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_are_those_of_sentencepiece(tokenizer: Tokenizer, texts: list[str]) -> None:
    oracle = plain(tokenizer)
    for text in (*AWKWARD, *random_texts(500), *texts):
        if "\u2581" not in text:
            assert tokenizer.encode(text) == oracle.encode(text)


def test_words_are_remembered_within_bounds(
    tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.data.tokenizer._CACHED_WORDS", 5)
    fresh = Tokenizer(tokenizer.model)
    assert fresh._words is not None
    assert [fresh.encode(text) for text in texts[:50]] == [tokenizer.encode(text) for text in texts[:50]]
    assert len(fresh._words) <= 5


def test_a_model_whose_pieces_cross_words_is_encoded_without_the_shortcut(tmp_path: Path, texts: list[str]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "crossing"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        split_by_whitespace=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=4,
    )
    crossing = Tokenizer.load(tmp_path / "crossing.model")
    assert crossing._words is None
    oracle = plain(crossing)
    assert all(crossing.encode(text) == oracle.encode(text) for text in texts)


def test_a_model_that_normalizes_is_encoded_as_sentencepiece_does(tmp_path: Path, texts: list[str]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(tmp_path / "nfkc"),
        model_type="unigram",
        vocab_size=400,
        byte_fallback=True,
        minloglevel=4,
    )
    normalizing = Tokenizer.load(tmp_path / "nfkc.model")
    oracle = plain(normalizing)
    assert all(normalizing.encode(text) == oracle.encode(text) for text in (*texts, *AWKWARD[:13]))


def test_token_bytes_add_up_to_the_documents_bytes(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text in (*AWKWARD, *random_texts(300), *texts[:50]):
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        counts = tokenizer.token_bytes(ids)
        assert counts.dtype == np.int32
        assert counts[0] == counts[-1] == 0
        assert counts.sum() == len(text.encode())


def test_token_bytes_of_a_stream_add_up_over_documents_and_over_windows(tokenizer: Tokenizer, texts: list[str]) -> None:
    stream: list[int] = []
    starts = []
    for text in texts[:40]:
        starts.append(len(stream))
        stream += [*tokenizer.encode(text), tokenizer.eos_id]
    whole = tokenizer.token_bytes(stream, document_starts=starts)
    assert whole.sum() == sum(len(text.encode()) for text in texts[:40])
    middle = tokenizer.token_bytes(stream[100:300], document_starts=[s - 100 for s in starts if 100 <= s < 300])
    assert np.array_equal(middle, whole[100:300])


def test_an_empty_document_takes_no_byte_from_the_next_one(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.eos_id, *tokenizer.encode("word"), tokenizer.eos_id]
    assert tokenizer.token_bytes(ids, document_starts=[0]).sum() == len("word") + 1


def test_llama_settings_are_in_the_model(tokenizer: Tokenizer) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert plain(tokenizer).pad_id() == -1
    pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    assert pieces[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert not any(len(piece) > 1 and any(c.isdigit() for c in piece) for piece in pieces[259:])
    assert any(set(piece) == {"\u2581"} and len(piece) > 1 for piece in pieces)
    assert tokenizer.piece(tokenizer.encode("a\n")[-1]) == "<0x0A>"


def test_training_twice_writes_the_same_file(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    again = train_tokenizer(iter(texts), tmp_path / "again.model", vocab_size=tokenizer.vocab_size)
    assert (tmp_path / "again.model").read_bytes() == tokenizer.model
    assert again.fingerprint == tokenizer.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["again.model"]


@pytest.mark.parametrize(("vocab_size", "reason"), [(100, "smaller than required_chars"), (90_000, "too high")])
def test_a_vocabulary_the_text_does_not_allow_names_key_and_reason(
    vocab_size: int, reason: str, texts: list[str], tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError, match=f"tokenizer.vocab_size={vocab_size}.*{reason}"):
        train_tokenizer(texts, tmp_path / "t.model", vocab_size=vocab_size)


def test_training_without_text_says_so(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no training text"):
        train_tokenizer([], tmp_path / "t.model", vocab_size=300)


def test_an_error_of_the_documents_survives_training(tmp_path: Path) -> None:
    def broken():
        yield "some text"
        raise DataError("line 2 is not JSON")

    with pytest.raises(DataError, match="line 2 is not JSON"):
        train_tokenizer(broken(), tmp_path / "t.model", vocab_size=300)


def test_a_missing_model_and_one_that_is_none_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="absent.model.*cannot be read"):
        Tokenizer.load(tmp_path / "absent.model")
    (tmp_path / "text.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"text\.model is not a SentencePiece model"):
        Tokenizer.load(tmp_path / "text.model")


def test_a_model_without_byte_fallback_is_refused(tmp_path: Path, texts: list[str]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(tmp_path / "lossy"), vocab_size=120, minloglevel=4
    )
    with pytest.raises(TokenizerError, match="no byte fallback"):
        Tokenizer.load(tmp_path / "lossy.model")


def test_another_size_than_configured_names_both(tokenizer: Tokenizer) -> None:
    tokenizer.require(vocab_size=tokenizer.vocab_size, bos=True, eos=True)
    with pytest.raises(TokenizerError, match=f"vocab_size=32000.*{tokenizer.vocab_size} pieces"):
        tokenizer.require(vocab_size=32000)


def test_a_lone_surrogate_is_explained(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="lone surrogate.*character 3"):
        tokenizer.encode("abc\ud800")

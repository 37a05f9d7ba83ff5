"""What a tokenizer is said to lose, against SentencePiece's own encoding and decoding."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from pretrain.config.tokenizer import LOSSES
from pretrain.data.__main__ import main
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_loss import Report, measure, require_lossless
from pretrain.data.tokenizer_training import PRESETS, train_tokenizer
from pretrain.errors import ConfigError, TokenizerError

SPACES = {"repeated_spaces", "leading_spaces", "trailing_spaces", "space_symbol"}
NFKC = {"unicode_forms", "space_symbol"}
NMT = NFKC | {"control_characters", "invisible_characters", "tabs", "carriage_returns", "newlines"}

REAL = [
    "def f(x):\n    if x:\n        return 1\n",
    "A plain sentence.",
    "naïve ﬁne ① text with a no-break\u00a0space",
    "a table:\tcell\tcell\r\n",
    "",
]


def trained(texts: list[str], **settings: object) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        minloglevel=4,
        **settings,
    )
    return Tokenizer(model.getvalue(), name="t.model")


def names(report: Report) -> set[str]:
    return {loss.name for loss in report.losses}


def test_the_default_tokenizer_loses_nothing(tokenizer: Tokenizer, texts: list[str]) -> None:
    report = measure(tokenizer, [*REAL, *texts, "U+2581: \u2581 \u2581\u2581"])
    assert report.losses == ()
    assert (report.num_documents, report.num_bytes) == (
        len(REAL) + len(texts) + 1,
        sum(len(text.encode()) for text in [*REAL, *texts]) + len("U+2581:  \u2581\u2581\u2581".encode()),
    )
    assert require_lossless(tokenizer, REAL).losses == ()


@pytest.mark.parametrize(
    ("rule", "removes", "expected"),
    [
        ("identity", True, SPACES),
        ("identity", False, set()),
        ("nfkc", False, NFKC),
        ("nfkc", True, NFKC | SPACES),
        ("nmt_nfkc", False, NMT),
        ("nmt_nfkc", True, NMT | SPACES),
        ("nfkc_cf", False, NFKC | {"letter_case"}),
    ],
)
@pytest.mark.parametrize("prefix", [True, False])
def test_each_kind_is_found_and_explains_all_that_real_text_loses(
    rule: str, removes: bool, prefix: bool, expected: set[str], texts: list[str]
) -> None:
    lossy = trained(texts, normalization_rule_name=rule, remove_extra_whitespaces=removes, add_dummy_prefix=prefix)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=lossy.model)
    sample = [*REAL, *texts]
    report = measure(lossy, sample)
    assert names(report) == expected
    assert names(measure(lossy, [])) == expected, "a kind is lost whether or not the sample has it"
    for loss in report.losses:
        assert loss.before != loss.after == lossy.decode(lossy.encode(loss.before))
    changed = [text for text in sample if oracle.decode(oracle.encode(text)) != text]
    assert bool(changed) == bool(expected)
    assert max((loss.num_documents for loss in report.losses), default=0) <= len(changed)
    if "repeated_spaces" in expected:
        (loss,) = (loss for loss in report.losses if loss.name == "repeated_spaces")
        assert loss.num_documents == sum("  " in text for text in changed)
    if "unicode_forms" in expected:
        (loss,) = (loss for loss in report.losses if loss.name == "unicode_forms")
        assert loss.num_documents == sum(unicodedata.normalize("NFKC", text) != text for text in changed)


def test_a_loss_that_no_kind_explains_is_called_other(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "rules.tsv").write_text("71\t7A\n")  # q becomes z
    odd = trained(texts, normalization_rule_tsv=str(tmp_path / "rules.tsv"), remove_extra_whitespaces=False)
    report = measure(odd, ["a quick word", "nothing"])
    (loss,) = (loss for loss in report.losses if loss.name == "other")
    assert (loss.before, loss.after, loss.num_documents) == ("a quick word", "a zuick word", 1)


def test_preparation_is_refused_until_each_loss_is_accepted(texts: list[str], tmp_path: Path) -> None:
    lossy = train_tokenizer(texts, tmp_path / "v1.model", vocab_size=600, preset="openllama_v1")
    assert names(measure(lossy, REAL)) == SPACES
    with pytest.raises(TokenizerError) as caught:
        require_lossless(lossy, REAL, accept=["space_symbol"])
    message = str(caught.value)
    assert "repeated_spaces       'def f(x):\\n    if x:\\n" in message
    assert "becomes 'def f(x):\\n if x:\\n" in message
    assert "(1 of 5 documents)" in message
    assert "tokenizer.accept_loss=[space_symbol, repeated_spaces, leading_spaces, trailing_spaces]" in message
    assert names(require_lossless(lossy, REAL, accept=sorted(SPACES))) == SPACES


def test_an_unknown_name_is_refused_with_the_known_ones(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"accept_loss lists 'repeated_space'.*repeated_spaces.*Known: unicode_forms"):
        require_lossless(tokenizer, [], accept=["repeated_space"])


def test_the_sample_is_bounded(tokenizer: Tokenizer) -> None:
    endless = iter(lambda: "x" * 1000, None)
    assert measure(tokenizer, endless, sample_bytes=10_000).num_documents == 10


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_trains_and_keeps_what_it_says(preset: str, texts: list[str], tmp_path: Path) -> None:
    model = train_tokenizer(texts, tmp_path / "t.model", vocab_size=600, preset=preset)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=model.model)
    merged = preset == "openllama_v1"
    assert oracle.decode(oracle.encode("a   b\n\tc")) == ("a b\n\tc" if merged else "a   b\n\tc")
    spaces = [piece for piece in map(model.piece, range(model.vocab_size)) if set(piece) == {"\u2581"}]
    assert (spaces == ["\u2581"]) == merged
    assert set(LOSSES) >= names(measure(model, texts))


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="preset='gpt' is not known. Known: llama, openllama_v1, openllama_v2"):
        train_tokenizer(["a"], tmp_path / "t.model", vocab_size=300, preset="gpt")


def test_tokenizers_are_trained_and_checked_from_the_command_line(
    tmp_path: Path,
    texts: list[str],
    write_jsonl: Callable[..., Path],
    tokenizer: Tokenizer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    corpus = write_jsonl(tmp_path / "c.jsonl", [*texts, *REAL])
    out = tmp_path / "new" / "t.model"
    train = ["train_tokenizer", "--vocab-size", "700", "--out", str(out), str(corpus)]
    assert main(train) == 0
    assert out.read_bytes() == train_tokenizer([*texts, *REAL], tmp_path / "o.model", vocab_size=700).model
    assert main(["check_tokenizer", str(out), str(corpus)]) == 0
    assert "nothing is lost" in capsys.readouterr().out
    assert main(train) == 2
    assert "exists. Name a file that does not exist" in capsys.readouterr().err

    out = tmp_path / "v1.model"
    config = [f"data.sources.own.paths=[{corpus}]", "tokenizer.training_bytes=100000", "data.holdout_fraction=0.1"]
    assert main(["train_tokenizer", "--preset", "openllama_v1", "--vocab-size", "600", "--out", str(out), *config]) == 0
    assert "needs tokenizer.accept_loss:\n  space_symbol" in capsys.readouterr().out
    assert main(["check_tokenizer", str(out)]) == 1
    assert main(["check_tokenizer", str(out), "--accept", *sorted(SPACES)]) == 0
    accepted = f"tokenizer.accept_loss=[{','.join(sorted(SPACES))}]"
    assert main(["check_tokenizer", str(out), *config, accepted]) == 0
    assert " - accepted" in capsys.readouterr().out
    assert main(["check_tokenizer", str(out), str(corpus), "train.steps=1"]) == 2
    assert "not both" in capsys.readouterr().err

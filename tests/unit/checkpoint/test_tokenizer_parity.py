"""Tokenizer files of exports: the ids of AutoTokenizer are those of training, or the export is refused."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import io
import random
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pretrain.checkpoint.__main__ import main
from pretrain.checkpoint.calendar import save_steps
from pretrain.checkpoint.hub import Hub
from pretrain.checkpoint.release import Releases
from pretrain.checkpoint.tokenizer_files import read_sentencepiece, tokenizer_json, write_tokenizer_files
from pretrain.checkpoint.tokenizer_parity import export_mismatch, tokenizer_mismatch
from pretrain.config.load import load_yaml
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import CheckpointError
from pretrain.hooks.release import ReleaseHook
from pretrain.state import RunState
from tests.unit.checkpoint.released_run import make_run

WORDS = [
    *("river", "stone", "lamp", "naïve", "Ⅳ", "①", "ﬁne", "ｆｕｌｌ", "你好", "世界", "def", "return", "f(x):"),
    *("é", "aa", "aaa", "ab", "bc", "abc"),
]
SYMBOLS = [
    *("<|sep|>", "<|sep|><|end|>", "<|end|>", "\n\n", "\t", "▁▁", "▁▁▁", "ab", "abc", "bcd", "lamp", "▁g", "12"),
    *("é", "a.c", "[x]", "(?:", "\\d", "^", "$"),
]
KINDS: dict[str, dict[str, object]] = {
    "llama": {},
    "user-defined": {"user_defined_symbols": [*SYMBOLS, "  ", " x"]},
    "user-defined, no dummy prefix": {"user_defined_symbols": SYMBOLS, "add_dummy_prefix": False},
    "user-defined, extra spaces removed": {"user_defined_symbols": SYMBOLS, "remove_extra_whitespaces": True},
    "openllama_v1": {"remove_extra_whitespaces": True, "allow_whitespace_only_pieces": False},
    "control symbols": {"control_symbols": ["<pad>", "<eot>"]},
    "unigram": {"model_type": "unigram"},
}
REFUSED: dict[str, dict[str, object]] = {
    "symbols of spaces, extra spaces removed": {"user_defined_symbols": ["  "], "remove_extra_whitespaces": True},
    "Unicode normalization": {"normalization_rule_name": "nmt_nfkc", "user_defined_symbols": SYMBOLS},
    "spaces after words": {"treat_whitespace_as_suffix": True},
    "unigram with user-defined symbols": {"model_type": "unigram", "user_defined_symbols": SYMBOLS},
}
ATOMS = [
    text.replace("▁", " ") for text in [*WORDS, *SYMBOLS, "x", "y", "b", "c", "q", "g", "<", "|", "sep", "|>", "\\"]
]
ATOMS += [" ", "   ", "\n", "\r\n", "<0x0A>", "<0x41>", "e\u0301", "👩‍👩‍👧", "\u3000", "\u00a0", "\x07", "한국"]


@functools.cache
def trained(kind: str) -> bytes:
    """A model of 420 pieces; the lines hold every atom, in an order of their own."""
    draw, model = random.Random(0), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["  " * (i % 2) + " ".join(draw.choices(WORDS, k=12)) + " 12." for i in range(400)]),
        model_writer=model,
        **{
            **{"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "hard_vocab_limit": False},
            **{"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "minloglevel": 4},
            **(KINDS | REFUSED)[kind],
        },
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, AutoTokenizer]]:
    """Tokenizers of training and of transformers, by kind."""
    found = {}
    for number, kind in enumerate(KINDS):
        folder = tmp_path_factory.mktemp(f"kind{number}")
        (folder / "trained.model").write_bytes(trained(kind))
        write_tokenizer_files(folder / "trained.model", folder, add_bos=False)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        found[kind] = Tokenizer(trained(kind)), AutoTokenizer.from_pretrained(folder)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "texts",
    [
        [" lead", "a  b", "x<|sep|>y", "<|sep|>", "<|sep|> x", "  <|sep|>", " ", "  ", "   ", "\n", "\n\n\n", "\t\t"],
        [
            "ababcd",
            "abcd",
            "aabc",
            "abc",
            " g",
            "  g",
            "   g",
            "<|sep|><|sep|><|end|>",
            "<|sep|><|end",
            "a.c abc",
            "12é12",
        ],
        ["<0x0A>", "<|sep|><0x41>", "ab<0x0A>ab", "<0x41><0x42>", "\\d5", "[x]x", "^$", "(?:a)", "lamp lamps", " lamp"],
    ],
    ids=["spaces", "overlaps", "names of bytes and of regular expressions"],
)
def test_texts_made_to_differ_have_the_ids_of_training(exported, kind: str, texts: list[str]) -> None:
    tokenizer, auto = exported[kind]
    assert [auto(text)["input_ids"] for text in texts] == [tokenizer.encode(text) for text in texts]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(sorted(KINDS)), parts=st.lists(st.sampled_from(ATOMS) | st.text(max_size=3), max_size=9))
def test_any_text_has_the_ids_of_training(exported, kind: str, parts: list[str]) -> None:
    tokenizer, auto = exported[kind]
    text = "".join(parts).replace("\u2581", "")  # which training encodes as its bytes, on purpose
    specials = ("<unk>", "<s>", "</s>", "<pad>", "<eot>")
    if not any(name in text for name in specials):
        assert auto(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_lets_exact_tokenizers_pass(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.model").write_bytes(trained(kind))
    assert export_mismatch(tmp_path / "t.model", add_bos=True) is None


@pytest.mark.parametrize("kind", REFUSED)
def test_the_gate_names_a_text_that_transformers_reads_otherwise(tmp_path: Path, kind: str) -> None:
    (tmp_path / "t.model").write_bytes(trained(kind))
    mismatch = export_mismatch(tmp_path / "t.model", add_bos=True)
    assert mismatch is not None and 0 < mismatch.num_different <= mismatch.num_texts
    tokenizer = Tokenizer(trained(kind))
    assert [tokenizer.piece(token) for token in tokenizer.encode(mismatch.text)] == list(mismatch.pieces)
    assert mismatch.pieces != mismatch.exported_pieces and repr(mismatch.text) in str(mismatch)


def test_a_gate_that_is_shown_other_files_sees_them(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(trained("user-defined"))
    write_tokenizer_files(tmp_path / "t.model", tmp_path, add_bos=False)
    assert tokenizer_mismatch(tmp_path) is None
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"ignore_merges": true', '"ignore_merges": false'))
    mismatch = tokenizer_mismatch(tmp_path)
    assert mismatch is not None and mismatch.num_different > 100


def test_a_llama_tokenizer_is_written_as_it_always_was(tokenizer_model: Path) -> None:
    values = tokenizer_json(read_sentencepiece(tokenizer_model), add_bos=False)
    assert values["pre_tokenizer"] is None and values["model"]["ignore_merges"] is False
    assert values["normalizer"]["normalizers"] == [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ]
    assert [token["content"] for token in values["added_tokens"]] == ["<unk>", "<s>", "</s>"]
    assert list(values) == [
        *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"),
        *("decoder", "model"),
    ]


@pytest.fixture
def suffixed(tmp_path: Path) -> Path:
    """A run whose tokenizer cannot be expressed, with one save."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(inspect.getsource(textwrap).splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        treat_whitespace_as_suffix=True,
        minloglevel=4,
    )
    (tmp_path / "suffix.model").write_bytes(model.getvalue())
    return make_run(tmp_path / "run", tmp_path / "suffix.model", steps=(25,), export="all")


def test_an_export_with_other_ids_is_refused_until_it_is_allowed(suffixed: Path, tmp_path: Path, capsys) -> None:
    save, out = suffixed / "checkpoints/step_00000025", tmp_path / "out"
    export = ["export", str(save), str(out), "--tokenizer", str(suffixed / "tokenizer.model")]
    assert main(export) == 1 and not out.exists()
    told = capsys.readouterr().err
    assert "AutoTokenizer gives other ids" in told and "--allow-tokenizer-mismatch" in told
    assert main([*export, "--allow-tokenizer-mismatch"]) == 0
    assert "give other ids than the model was trained with" in (out / "README.md").read_text()


def test_a_release_with_other_ids_is_refused_and_one_that_is_there_is_not_pushed(suffixed: Path, capsys) -> None:
    folder = suffixed / "export/step_00000025"
    assert main(["release", str(suffixed)]) == 1 and not folder.exists()
    assert "AutoTokenizer gives other ids" in capsys.readouterr().err
    assert main(["release", str(suffixed), "--allow-tokenizer-mismatch"]) == 0 and folder.is_dir()
    capsys.readouterr()
    assert main(["release", str(suffixed)]) == 1, "of a version that did not look"
    assert f"{folder}: AutoTokenizer gives other ids" in capsys.readouterr().err
    releases = Releases.of_run(suffixed)
    config = dataclasses.replace(releases.config)
    config.checkpoint = dataclasses.replace(config.checkpoint, hub_repository="me/mine")
    (manifest,) = releases.present()
    with pytest.raises(CheckpointError, match="AutoTokenizer gives other ids"):
        dataclasses.replace(releases, config=config).push(manifest, Hub())  # before anything is sent


@pytest.mark.parametrize(
    ("export", "allowed", "words"),
    [
        ("all", False, ["Every export of this run will be refused.", "checkpoint.allow_tokenizer_mismatch=true"]),
        ("last", True, ["Exports are published all the same"]),
        ("none", False, None),
    ],
)
def test_a_run_that_will_export_warns_when_it_starts(suffixed: Path, export: str, allowed: bool, words) -> None:
    config = load_yaml(suffixed / "config.yaml")
    config.checkpoint.export, config.checkpoint.allow_tokenizer_mismatch = export, allowed
    warnings: list[str] = []
    run = SimpleNamespace(
        config=config,
        state=RunState(seed=0),
        info=SimpleNamespace(resume_step=-1),
        job=SimpleNamespace(rank=0),
        tracker=SimpleNamespace(warn=lambda kind, warning, step: warnings.append(f"{kind}: {warning}")),
    )
    ReleaseHook(Releases(suffixed, config, save_steps(config), suffixed / "export")).on_start(run)
    if words is None:
        assert warnings == []
    else:
        assert len(warnings) == 1 and warnings[0].startswith("tokenizer_mismatch: ")
        assert all(word in warnings[0] for word in ["AutoTokenizer gives other ids", *words])

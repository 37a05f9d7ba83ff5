"""Small texts, a tokenizer trained on them, and configurations over them, shared by the tests of the data room."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pretrain.config.data import DataConfig, SourceConfig
from pretrain.config.run import RunConfig, RunSection, TrainSection
from pretrain.config.tokenizer import TokenizerConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer

VOCAB_SIZE = 700
SENTENCES = (
    "The loss of a language model falls as a power of its size, its data and its compute.",
    "Rivers carry sand to the sea; the sea gives some of it back.",
    "    for index, value in enumerate(values):\n        total += value * weights[index]\n",
    "In 1931 there were 2,847 people, and 12.5% of them could read.",
    "模型在中文文本上训练。数据很重要。",
    "Größe, naïveté, façade — and a dash… 🙂🚀",
    "x = {'key': [1, 2, 3]}\t# a comment\n\n\ndef f(x):\n\treturn x\n",
)


def make_texts(count: int, *, seed: int) -> list[str]:
    """Documents of a few shuffled sentences, each different from the others."""
    rng = random.Random(seed)
    return [
        f"{rng.choice(('', '  '))}{seed}-{i}: " + " ".join(rng.choices(SENTENCES, k=rng.randint(1, 12)))
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_texts(300, seed=0)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=VOCAB_SIZE)


def write_jsonl(path: Path, rows: Iterable[str | dict[str, Any]]) -> Path:
    """A JSONL file of texts, or of whole rows."""
    lines = (json.dumps({"text": row} if isinstance(row, str) else row, ensure_ascii=False) for row in rows)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(name="write_jsonl")
def _write_jsonl() -> Callable[[Path, Iterable[str | dict[str, Any]]], Path]:
    return write_jsonl


@pytest.fixture(name="make_texts")
def _make_texts() -> Callable[..., list[str]]:
    return make_texts


@pytest.fixture
def config(tmp_path: Path, tokenizer: Tokenizer) -> RunConfig:
    """Two sources over a given tokenizer: `prose` marks its validation documents, `code` holds out by hash."""
    marked = [{"text": text, "meta": {"split": "validation"}} for text in make_texts(6, seed=11)]
    unmarked = [{"text": text, "meta": {"url": "none"}} for text in make_texts(90, seed=1)]
    write_jsonl(tmp_path / "prose-1.jsonl", [*unmarked[:50], *marked[:4]])
    write_jsonl(tmp_path / "prose-2.jsonl", [*marked[4:], *unmarked[50:], {"text": ""}])
    write_jsonl(tmp_path / "code.jsonl", make_texts(120, seed=2))
    model = tmp_path / "given.model"
    tokenizer.save(model)
    return RunConfig(
        run=RunSection(dir=str(tmp_path / "runs"), seed=7),
        train=TrainSection(steps=10, micro_batch_size=2, global_batch_size=8, sequence_length=32),
        data=DataConfig(
            sources={
                "prose": SourceConfig(paths=[str(tmp_path / "prose-*.jsonl")], weight=3.0),
                "code": SourceConfig(paths=[str(tmp_path / "code.jsonl")], weight=1.0),
            },
            holdout_fraction=0.05,
            validation_tokens=500,
        ),
        tokenizer=TokenizerConfig(path=str(model), vocab_size=VOCAB_SIZE),
    )

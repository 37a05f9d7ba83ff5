"""A tokenizer that lacks pieces of a model's vocabulary: told wherever the two meet, padding aside."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pretrain.checkpoint.manifest import Manifest
from pretrain.config.run import RunConfig
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_training import train_tokenizer
from pretrain.errors import ConfigError
from pretrain.model.spec import ModelSpec
from pretrain.state import RunState
from pretrain.train import _start_from
from pretrain.vocabulary import missing_pieces
from probes.beside import Settings
from probes.commands import score, watch
from probes.target import find_target, find_tokenizer, tokenizer_warning
from tests.support.published import publish
from tests.unit.checkpoint.live import VOCABULARY, make_model, make_spec
from tests.unit.checkpoint.released_run import make_run


@pytest.mark.parametrize(
    ("num_pieces", "vocab_size"),
    [
        (32_000, 32_000),
        (32_000, 32_001),  # a token for padding
        (32_000, 32_064),
        (32_000, 32_768),  # and 768 added tokens
        (50_257, 50_304),  # Pythia, padded for one rank
        (50_257, 50_688),  # and for four
        (400, 512),
        (32_768, 32_000),  # more pieces than rows is an error elsewhere
    ],
)
def test_padding_is_no_difference(num_pieces: int, vocab_size: int) -> None:
    assert missing_pieces(num_pieces=num_pieces, vocab_size=vocab_size) is None


@pytest.mark.parametrize(
    ("num_pieces", "vocab_size", "multiple"),
    [
        (32_000, 128_256, "1,024"),
        (32_000, 32_769, "1,024"),
        (320, 32_000, "128"),
        (320, 500, "128"),
        (4096, 5121, "1,024"),
    ],
)
def test_more_than_padding_is_told_with_both_numbers(num_pieces: int, vocab_size: int, multiple: str) -> None:
    told = missing_pieces(num_pieces=num_pieces, vocab_size=vocab_size)
    assert told is not None
    assert f"{num_pieces:,} pieces" in told and f"{vocab_size:,}" in told and f"a multiple of {multiple}" in told


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """`few` pieces, and two that have as many as the model."""
    folder = tmp_path_factory.mktemp("tokenizers")
    first, second = (Path(module).read_text(encoding="utf-8") for module in (json.__file__, dataclasses.__file__))
    return {
        "few": train_tokenizer(["the cat runs home quickly"] * 50, folder / "few.model", vocab_size=300),
        "own": train_tokenizer([first], folder / "own.model", vocab_size=VOCABULARY),
        "other": train_tokenizer([second], folder / "other.model", vocab_size=VOCABULARY),
    }


@pytest.fixture
def published(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> Path:
    """A Hugging Face LLaMA with its tokenizer."""
    folder = tmp_path / "published"
    config = make_spec(num_query_groups=4).config_json(sequence_length=64)
    publish(folder, make_model(make_spec(num_query_groups=4)).state_dict(), config)
    tokenizers["own"].save(folder / "tokenizer.model")
    return folder


def test_a_folder_is_scored_with_its_own_tokenizer_without_a_word(published: Path) -> None:
    target = find_target(published)
    assert tokenizer_warning(target, find_tokenizer(target, None)) is None


@pytest.fixture
def suite(tmp_path: Path) -> Settings:
    """A suite of one small task."""
    items = tmp_path / "items.jsonl"
    items.write_text('{"text": "import json", "answer": " and dataclasses"}\n' * 3)
    task = {"task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(items)}}}
    task |= {
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{answer}}",
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({**task, "metric_list": [{"metric": "acc"}]}))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"tasks": [{"task": "t", "domain": "d"}]}))
    return Settings(suite=str(tmp_path / "s.yaml"), task_paths=[str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("few", ["has 300 pieces, the model a vocabulary of 500", "is another tokenizer than"]),
        ("other", ["published/tokenizer.model is another tokenizer than", "other.model"]),
    ],
)
def test_score_warns_of_a_tokenizer_that_is_not_the_models(
    published: Path, tokenizers: dict[str, Tokenizer], suite: Settings, name: str, words: list[str], capsys
) -> None:
    settings = dataclasses.replace(suite, tokenizer=tokenizers[name].name)
    job = SimpleNamespace(once=lambda work: work())
    score._prepare(find_target(published), settings, {"add_bos": True}, job)
    told = capsys.readouterr().err
    assert "warning: " in told and all(word in told for word in [*words, "tokenizer=FILE"])


def test_watch_tells_its_journal_too(tokenizers: dict[str, Tokenizer], suite: Settings, tmp_path: Path, capsys) -> None:
    run = make_run(tmp_path / "run", Path(tokenizers["few"].name), steps=(25,))
    target = find_target(run / "checkpoints/step_00000025")
    target = dataclasses.replace(target, tokenizer_fingerprint=tokenizers["few"].fingerprint)
    watch._prepare(run, target, suite, SimpleNamespace(once=lambda work: work()))
    rows = [json.loads(line) for line in (run / "watch.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["tokenizer_doubt", "probe_plan"]
    assert (
        "has 300 pieces, the model a vocabulary of 500" in rows[0]["warning"] and "warning: " in capsys.readouterr().err
    )


def started_from(path: Path, tokenizer: Tokenizer, spec: ModelSpec | None = None) -> str | None:
    """What a run that starts from published weights with a tokenizer is told."""
    config = RunConfig()
    config.checkpoint.start_from = str(path)
    engine = SimpleNamespace(sharded_state=lambda: SimpleNamespace(start_from=lambda source: None))
    parts = SimpleNamespace(
        config=config,
        spec=spec or make_spec(num_query_groups=4),
        engine=engine,
        data=SimpleNamespace(tokenizer=tokenizer),
        job=SimpleNamespace(once=lambda work: work()),
    )
    return _start_from(parts, RunState(seed=0))


def test_a_run_that_starts_from_published_weights_is_told_of_another_tokenizer(
    published: Path, tokenizers: dict[str, Tokenizer]
) -> None:
    assert started_from(published, tokenizers["own"]) is None
    told = started_from(published, tokenizers["other"])
    assert told is not None and "published/tokenizer.model is another tokenizer than" in told
    assert told.startswith("checkpoint.start_from: ") and "tokenizer.path" in told


def test_a_run_that_starts_from_a_checkpoint_is_told_of_another_tokenizer(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = make_run(tmp_path / "run", Path(tokenizers["own"].name), steps=(25,)) / "checkpoints/step_00000025"
    meta = Manifest.read(path).meta
    fingerprint = meta.tokenizer_fingerprint
    told = started_from(path, tokenizers["few"], meta.model)
    assert told is not None and "has 300 pieces, the model a vocabulary of 500" in told
    assert f"was trained with tokenizer {fingerprint}, not with {tokenizers['few'].fingerprint}" in told


@pytest.mark.parametrize("changed", [{"rope_base": 5e5}, {"norm_epsilon": 1e-5}, {"num_attention_heads": 8}])
def test_weights_of_a_checkpoint_that_were_trained_for_another_model_are_refused(
    changed: dict[str, Any], tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    path = make_run(tmp_path / "run", Path(tokenizers["own"].name), steps=(25,)) / "checkpoints/step_00000025"
    spec = dataclasses.replace(Manifest.read(path).meta.model, **changed)
    ((name, value),) = changed.items()
    with pytest.raises(ConfigError, match=f"model.{name}={value}, but the weights were trained with"):
        started_from(path, tokenizers["own"], spec)

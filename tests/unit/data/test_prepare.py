"""Preparing once, from any state of the disk, and refusing what does not belong together."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data import prepare
from pretrain.data.manifest import find_text
from pretrain.data.prepare import PreparedData, ensure_prepared
from pretrain.data.prepared import check_folder
from pretrain.data.sample import training_text
from pretrain.data.shards import is_held_out
from pretrain.data.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError, TokenizerError


def run_root(config: RunConfig) -> Path:
    return Path(config.run.dir)


def prepare_now(config: RunConfig) -> PreparedData:
    return ensure_prepared(config, run_root=run_root(config))


def folders(config: RunConfig) -> list[str]:
    return sorted(p.name for p in (run_root(config) / "prepared").iterdir() if p.is_dir())


def test_prepared_sources_hold_the_text_split_as_marked_or_by_hash(config: RunConfig, make_texts: Callable) -> None:
    prepared = prepare_now(config)
    assert list(prepared.sources) == ["prose", "code"]
    prose = prepared.manifest["sources"]["prose"]
    assert (prose["train"]["documents"], prose["validation"]["documents"]) == (90, 6)
    held_out = [text for text in make_texts(120, seed=2) if is_held_out(text, 0.05)]
    code = prepared.manifest["sources"]["code"]
    assert code["validation"] == {
        "documents": len(held_out),
        "tokens": sum(len(prepared.tokenizer.encode(text)) + 1 for text in held_out),
        "bytes": sum(len(text.encode()) for text in held_out),
        "characters": sum(map(len, held_out)),
    }
    for name, source in prepared.sources.items():
        assert source.train.num_tokens == prepared.manifest["sources"][name]["train"]["tokens"]
    check_folder(prepared.directory, full=True)


def test_validation_bytes_are_those_of_the_text(config: RunConfig, make_texts: Callable) -> None:
    source = prepare_now(config).sources["prose"]
    assert len(source.validation_tokens) == 500 and source.validation_tokens.dtype == np.int32
    config.data.validation_tokens = 10**9
    prepared = prepare_now(config)
    whole = prepared.sources["prose"]
    text_bytes = [len(text.encode()) for text in make_texts(6, seed=11)]
    assert whole.validation_token_bytes.sum() == sum(text_bytes)
    ends = np.flatnonzero(whole.validation_tokens == prepared.tokenizer.eos_id) + 1
    found = [whole.validation_token_bytes[a:b].sum() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    assert found == text_bytes
    assert np.array_equal(whole.validation_token_bytes[:500], source.validation_token_bytes)


def test_the_second_call_takes_what_is_there(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_now(config)
    monkeypatch.setattr(prepare, "run_units", None)
    assert prepare_now(config).directory == first.directory
    assert folders(config) == [first.directory.name]


def test_a_tokenizer_is_trained_on_training_text_only_and_kept_with_the_tokens(config: RunConfig) -> None:
    config.tokenizer.path = None
    prepared = prepare_now(config)
    assert prepared.tokenizer.vocab_size == config.tokenizer.vocab_size
    assert Tokenizer.load(prepared.directory / "tokenizer.model").fingerprint == prepared.tokenizer.fingerprint
    shutil.rmtree(prepared.directory)
    again = prepare_now(config)
    assert again.directory == prepared.directory
    assert again.manifest == prepared.manifest


def test_tokenizer_text_keeps_to_budget_and_weights_and_sees_no_validation(
    config: RunConfig, make_texts: Callable
) -> None:
    config.tokenizer.training_bytes = 8000
    chosen = list(training_text(config, find_text(config.data)))
    sizes = {seed: sum(len(t.encode()) for t in chosen if t.lstrip().startswith(f"{seed}-")) for seed in (1, 2)}
    assert 5900 < sizes[1] <= 6000
    assert 1900 < sizes[2] <= 2000
    held_out = {t for t in make_texts(120, seed=2) if is_held_out(t, 0.05)} | set(make_texts(6, seed=11))
    assert not held_out & set(chosen)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.data, "holdout_fraction", 0.1),
        lambda c: setattr(c.tokenizer, "add_bos", True),
        lambda c: setattr(c.tokenizer, "path", None),
        lambda c: c.data.sources.pop("code"),
        lambda c: shutil.copy(c.data.sources["prose"].paths[0].replace("*", "1"), c.data.sources["code"].paths[0]),
    ],
)
def test_what_changes_tokens_changes_the_folder(change: Callable, config: RunConfig) -> None:
    first = prepare_now(config)
    change(config)
    assert prepare_now(config).directory != first.directory


def test_what_does_not_change_tokens_keeps_the_folder(config: RunConfig, tmp_path: Path) -> None:
    first = prepare_now(config)
    config.data.sources["prose"].weight = 9.0
    config.data.validation_tokens = 7
    config.run.seed = 99
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(tmp_path / "code.jsonl", moved)
    config.data.sources["code"].paths = [str(moved / "code.jsonl")]
    assert prepare_now(config).directory == first.directory


def test_a_named_folder_is_made_and_later_used_without_the_text(config: RunConfig, tmp_path: Path) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens" / "v1.0")
    assert prepare_now(config).directory == tmp_path / "tokens" / "v1.0"
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    assert prepare_now(config).sources["code"].train.num_tokens > 0
    config.tokenizer.path = None
    assert prepare_now(config).tokenizer.vocab_size == config.tokenizer.vocab_size


def test_a_folder_made_with_another_tokenizer_is_refused_with_both_fingerprints(
    config: RunConfig, tmp_path: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    prepare_now(config)
    other = prepare.train_tokenizer(texts[:100], tmp_path / "other.model", vocab_size=tokenizer.vocab_size)
    config.tokenizer.path = str(tmp_path / "other.model")
    with pytest.raises(TokenizerError, match=f"{tokenizer.fingerprint}.*{other.fingerprint}.*prepared_dir"):
        prepare_now(config)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda c: setattr(c.tokenizer, "add_bos", True), DataError, "tokenizer.add_bos=False, not True"),
        (lambda c: setattr(c.data, "holdout_fraction", 0.5), DataError, "holdout_fraction=0.05, not 0.5"),
        (lambda c: c.data.sources.update(extra=SourceConfig(paths=["x"])), DataError, "no source 'extra'"),
        (lambda c: Path(c.data.sources["code"].paths[0]).write_text("{}"), DataError, "other text for source 'code'"),
        (lambda c: setattr(c.tokenizer, "vocab_size", 9), TokenizerError, "vocab_size=9"),
    ],
)
def test_a_named_folder_that_does_not_fit_the_configuration_is_refused(
    change: Callable, error: type[Exception], reason: str, config: RunConfig, tmp_path: Path
) -> None:
    config.data.prepared_dir = str(tmp_path / "tokens")
    prepare_now(config)
    change(config)
    with pytest.raises(error, match=reason):
        prepare_now(config)


def test_a_folder_of_something_else_is_left_alone(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "thesis.tex").write_text("x")
    config.data.prepared_dir = str(tmp_path / "tokens")
    with pytest.raises(DataError, match="is not a folder of prepared data: it .* holds thesis.tex"):
        prepare_now(config)
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == ["thesis.tex"]


def test_missing_and_torn_files_of_a_folder_are_named(config: RunConfig) -> None:
    prepared = prepare_now(config)
    path = prepared.directory / "code" / "00000.train.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=rf"code/00000\.train\.bin ends at byte {len(whole) - 2}.* {len(whole)} bytes"):
        prepare_now(config)
    path.write_bytes(whole[:-2] + b"\x00\x01")
    with pytest.raises(DataError, match=r"code/00000\.train\.bin is damaged"):
        check_folder(prepared.directory, full=True)
    path.unlink()
    with pytest.raises(DataError, match=r"code/00000\.train\.bin is missing"):
        prepare_now(config)


def test_sources_without_validation_or_training_text_say_what_to_do(config: RunConfig, tmp_path: Path) -> None:
    hopeless = copy.deepcopy(config)
    hopeless.data.holdout_fraction = 1e-9
    with pytest.raises(DataError, match=r"data\.sources\.code has no validation text.*120 documents.*holdout_fraction"):
        prepare_now(hopeless)
    config.data.holdout_fraction = 1.0
    with pytest.raises(DataError, match=r"data\.sources\.code has weight 1\.0 but no training text"):
        prepare_now(config)
    config.data.sources["code"].weight = 0.0
    assert prepare_now(config).sources["code"].train.num_tokens == 0
    (tmp_path / "code.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="every document is empty or rejected"):
        prepare_now(config)


def test_sources_must_exist_and_have_names_that_files_can_have(config: RunConfig) -> None:
    config.data.sources = {"a/b": config.data.sources["code"]}
    with pytest.raises(ConfigError, match="a/b: a source's name"):
        prepare_now(config)
    config.data.sources = {}
    with pytest.raises(ConfigError, match=r"data\.sources is empty"):
        prepare_now(config)


def test_without_a_holdout_a_source_that_marks_none_has_no_validation(config: RunConfig) -> None:
    config.data.holdout_fraction = 0.0
    prepared = prepare_now(config)
    code, prose = prepared.sources["code"], prepared.sources["prose"]
    assert len(code.validation_tokens) == len(code.validation_token_bytes) == 0
    assert code.validation_tokens.dtype == np.int32 and len(prose.validation_tokens) == 500
    assert prepared.manifest["sources"]["code"]["train"]["documents"] == 120


def test_a_failed_preparation_leaves_no_folder_and_mended_text_is_prepared(config: RunConfig, tmp_path: Path) -> None:
    whole = (tmp_path / "code.jsonl").read_bytes()
    (tmp_path / "code.jsonl").write_bytes(whole + b"{")
    with pytest.raises(DataError, match=r"(?s)code: 1 of 121 lines.*max_rejected_share=0.001.*code\.jsonl, line 121"):
        prepare_now(config)
    assert folders(config) == ["next.writing"]
    (tmp_path / "code.jsonl").write_bytes(whole)
    prepared = prepare_now(config)
    assert folders(config) == [prepared.directory.name]
    files = sorted(str(p.relative_to(prepared.directory)) for p in prepared.directory.rglob("*") if p.is_file())
    kinds = [f"00000.{split}.{ending}" for split in ("train", "validation") for ending in ("bin", "idx")]
    prose = ["00000.heldout.bin", "00000.heldout.idx", *kinds]
    assert files == sorted(
        ["manifest.json", "tokenizer.model"]
        + ["code/manifest.json", *(f"code/{kind.replace('validation', 'heldout')}" for kind in kinds)]
        + ["prose/manifest.json", *(f"prose/{kind}" for kind in prose)]
    )


def _prepare_and_report(config: RunConfig, report: multiprocessing.Queue) -> None:
    report.put(str(prepare_now(config).directory))


def _prepare_and_die(config: RunConfig, where: str) -> None:
    def die(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(prepare, where, die)
    prepare_now(config)


@pytest.mark.parametrize("where", ["write_manifests", "_publish", "_rename", "_clean"])
def test_after_a_kill_while_publishing_the_next_call_publishes(where: str, config: RunConfig) -> None:
    process = multiprocessing.get_context("fork").Process(target=_prepare_and_die, args=(config, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    prepared = prepare_now(config)
    assert folders(config) == [prepared.directory.name]
    assert sorted(p.name for p in prepared.directory.iterdir()) == ["code", "manifest.json", "prose", "tokenizer.model"]
    check_folder(prepared.directory, full=True)


def test_processes_that_prepare_at_once_end_with_one_folder(config: RunConfig) -> None:
    context = multiprocessing.get_context("fork")
    report = context.Queue()
    processes = [context.Process(target=_prepare_and_report, args=(config, report)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {report.get(timeout=300) for _ in processes}
    for process in processes:
        process.join()
    assert len(found) == 1
    assert folders(config) == [Path(found.pop()).name]


def test_progress_is_told_and_nothing_is_printed(config: RunConfig, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    config.tokenizer.path = None
    ensure_prepared(config, run_root=run_root(config), progress=told.append)
    assert [line.split()[0] for line in told] == ["training", "tokenising", "prepared"]
    assert capfd.readouterr() == ("", "")


def test_the_manifest_is_plain_json_without_paths_of_this_machine(config: RunConfig, tmp_path: Path) -> None:
    directory = Path(prepare_now(config).directory)
    source = json.loads((directory / "code" / "manifest.json").read_text())
    assert source["inputs"][0]["name"] == "code.jsonl"
    for path in directory.rglob("manifest.json"):
        assert str(tmp_path) not in path.read_text()

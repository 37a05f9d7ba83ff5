"""What a unit writes: order, splits, counts, and what becomes of text that cannot be used."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.config.data import SourceConfig
from pretrain.config.run import RunConfig
from pretrain.data.files import find_files
from pretrain.data.prepare import ensure_prepared
from pretrain.data.shards import is_held_out, run_unit
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.unit_state import STATE, UnitState, read_state
from pretrain.data.units import Plan, make_plan
from pretrain.errors import DataError


@pytest.fixture
def one_source(config: RunConfig, tmp_path: Path) -> RunConfig:
    """One source `s` of `t.jsonl`, a fifth of it held out."""
    config.data.sources = {"s": SourceConfig(paths=[str(tmp_path / "t.jsonl")])}
    config.data.holdout_fraction = 0.2
    return config


def write(config: RunConfig, directory: Path, tokenizer: Tokenizer) -> tuple[Plan, list[UnitState]]:
    """Makes all units of source `s`."""
    (directory / STATE).mkdir(parents=True, exist_ok=True)
    files = {name: find_files(source.paths, key="paths") for name, source in config.data.sources.items()}
    plan = make_plan(config, files, tokenizer=tokenizer.fingerprint)
    for unit in plan.units:
        run_unit(directory, plan, unit, tokenizer=tokenizer)
    return plan, [read_state(directory, unit) for unit in plan.units]


def documents(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))  # held: its arrays die with it
    return [dataset[i].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize(("bos", "eos"), [(False, True), (True, True), (True, False), (False, False)])
def test_megatron_reads_the_documents_that_were_written(
    bos: bool, eos: bool, one_source: RunConfig, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable,
    write_jsonl: Callable,
) -> None:  # fmt: skip
    texts = make_texts(60, seed=1)
    write_jsonl(tmp_path / "t.jsonl", [*texts[:30], "", *texts[30:]])
    one_source.tokenizer.add_bos, one_source.tokenizer.add_eos = bos, eos
    _, (state,) = write(one_source, tmp_path / "out", tokenizer)
    assert (state.is_done, state.lines, state.rejected) == (True, 61, {"empty": 1})
    for kind, chosen in (("train", False), ("heldout", True)):
        wanted = [t for t in texts if is_held_out(t, 0.2) == chosen]
        ids = [[1] * bos + tokenizer.encode(t) + [2] * eos for t in wanted]
        assert documents(tmp_path / "out" / "s" / f"00000.{kind}") == ids
        counts = state.shards[f"s/00000.{kind}"]
        assert counts.documents == len(wanted) and counts.tokens == sum(map(len, ids))
        assert counts.bytes == sum(len(t.encode()) for t in wanted) and counts.characters == sum(map(len, wanted))
    assert len(list((tmp_path / "out" / "s").iterdir())) == 4


def test_where_documents_are_marked_all_others_are_trained_on(
    one_source: RunConfig, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable
) -> None:
    texts = make_texts(40, seed=2)
    marked = {3, 39}
    rows = [{"text": t, "meta": {"split": "validation"} if i in marked else {}} for i, t in enumerate(texts)]
    write_jsonl(tmp_path / "t.jsonl", rows)
    source = ensure_prepared(one_source, run_root=tmp_path / "run").sources["s"]
    ids = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
    assert source.validation_tokens.tolist() == (ids[3] + ids[39])[:500]
    trained = [ids[i] for i in range(40) if i not in marked]
    # Those that would have been held out come last.
    trained.sort(key=lambda one: is_held_out(texts[ids.index(one)], 0.2))
    assert source.train.window(0, source.train.num_tokens).tolist() == [token for one in trained for token in one]


@pytest.mark.parametrize(("shard_bytes", "workers"), [(700, 1), (5000, 2), (10**9, 1)])
def test_tokens_do_not_depend_on_workers_or_on_how_work_is_cut(
    shard_bytes: int, workers: int, one_source: RunConfig, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable,
    write_jsonl: Callable,
) -> None:  # fmt: skip
    texts = make_texts(120, seed=3)
    write_jsonl(tmp_path / "t.jsonl", texts[:100])
    write_jsonl(tmp_path / "u.jsonl", texts[100:])
    one_source.data.sources["s"].paths = [str(tmp_path / "[tu].jsonl")]
    one_source.data.shard_bytes, one_source.data.validation_tokens = shard_bytes, 10**9
    prepared = ensure_prepared(one_source, run_root=tmp_path / "run", workers=workers)
    for held, found in (
        (False, prepared.sources["s"].train.window(0, prepared.sources["s"].train.num_tokens)),
        (True, prepared.sources["s"].validation_tokens),
    ):
        wanted = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts if is_held_out(t, 0.2) == held]
        assert found.tolist() == [token for one in wanted for token in one]
    manifest = json.loads((Path(prepared.directory) / "s" / "manifest.json").read_text())
    assert (manifest["documents"], manifest["lines"]) == (120, 120)
    assert (len(manifest["shards"]["train"]) > 20) == (shard_bytes == 700)


def test_a_unit_of_other_text_settings_or_tokenizer_is_begun_anew(
    one_source: RunConfig, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable
) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", make_texts(20, seed=4))
    plan, _ = write(one_source, tmp_path / "out", tokenizer)
    before = (tmp_path / "out" / "s" / "00000.train.bin").stat()
    write(one_source, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "s" / "00000.train.bin").stat() == before
    keys = {plan.units[0].key}
    changes: list[Callable[[], object]] = [
        lambda: setattr(one_source.tokenizer, "add_bos", True),
        lambda: setattr(one_source.data, "holdout_fraction", 0.3),
        lambda: path.write_bytes(path.read_bytes()),  # as many bytes, at another time
    ]
    for change in changes:
        change()
        plan, (state,) = write(one_source, tmp_path / "out", tokenizer)
        assert state.is_done
        keys.add(plan.units[0].key)
    assert len(keys) == 4


def test_held_out_documents_depend_on_their_text_alone_and_grow_with_the_fraction(make_texts: Callable) -> None:
    texts = make_texts(2000, seed=4)
    small = {t for t in texts if is_held_out(t, 0.05)}
    large = {t for t in texts if is_held_out(t, 0.2)}
    assert small < large
    assert abs(len(large) / len(texts) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / len(texts))
    text = texts[0]
    share = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 2**64
    assert is_held_out(text, share + 1e-9) and not is_held_out(text, share - 1e-9)
    assert not any(is_held_out(t, 0.0) for t in texts)
    assert all(is_held_out(t, 1.0) for t in texts)


def test_text_that_changes_while_it_is_read_is_refused(
    one_source: RunConfig, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable
) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", make_texts(20, seed=4))
    files = {"s": find_files([str(path)], key="paths")}
    plan = make_plan(one_source, files, tokenizer=tokenizer.fingerprint)
    path.write_bytes(path.read_bytes())
    (tmp_path / "out" / STATE).mkdir(parents=True)
    with pytest.raises(DataError, match=r"t\.jsonl changed while it was read"):
        run_unit(tmp_path / "out", plan, plan.units[0], tokenizer=tokenizer)
    assert not read_state(tmp_path / "out", plan.units[0]).is_done

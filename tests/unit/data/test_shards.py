"""What is written for a source: order, splits and counts, whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from pretrain.data import shards
from pretrain.data.shards import Encoder, is_held_out, write_source
from pretrain.data.tokenizer import Tokenizer


def write(
    paths: list[Path], directory: Path, tokenizer: Tokenizer, *, processes: int = 1, bos: bool = False, eos: bool = True
) -> dict[str, shards.SplitCounts]:
    directory.mkdir()
    with Encoder(tokenizer, num_processes=processes) as encoder:
        return write_source(
            "s",
            paths,
            directory=directory,
            encoder=encoder,
            text_key="text",
            holdout_fraction=0.2,
            add_bos=bos,
            add_eos=eos,
        )


def documents(directory: Path, split: str) -> list[list[int]]:
    dataset = IndexedDataset(str(directory / f"s.{split}"))  # held: its arrays die with it
    return [dataset[i].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize(("bos", "eos"), [(False, True), (True, True), (True, False), (False, False)])
def test_megatron_reads_the_documents_that_were_written(
    bos: bool, eos: bool, tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable
) -> None:
    texts = make_texts(60, seed=1)
    path = write_jsonl(tmp_path / "t.jsonl", [*texts[:30], "", *texts[30:]])
    counts = write([path], tmp_path / "out", tokenizer, bos=bos, eos=eos)
    for split, chosen in (("train", False), ("validation", True)):
        wanted = [t for t in texts if is_held_out(t, 0.2) == chosen]
        ids = [[1] * bos + tokenizer.encode(t) + [2] * eos for t in wanted]
        assert documents(tmp_path / "out", split) == ids
        assert counts[split].as_dict() == {
            "documents": len(wanted),
            "tokens": sum(map(len, ids)),
            "bytes": sum(len(t.encode()) for t in wanted),
            "characters": sum(map(len, wanted)),
        }
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_where_documents_are_marked_all_others_are_trained_on(
    tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable
) -> None:
    texts = make_texts(40, seed=2)
    marked = {3, 39}
    rows = [{"text": t, "meta": {"split": "validation"} if i in marked else {}} for i, t in enumerate(texts)]
    write([write_jsonl(tmp_path / "t.jsonl", rows)], tmp_path / "out", tokenizer)
    ids = [[*tokenizer.encode(t), tokenizer.eos_id] for t in texts]
    assert documents(tmp_path / "out", "validation") == [ids[3], ids[39]]
    assert sorted(documents(tmp_path / "out", "train")) == sorted(ids[i] for i in range(40) if i not in marked)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_several_processes_write_the_same_bytes_as_one(
    tmp_path: Path, tokenizer: Tokenizer, make_texts: Callable, write_jsonl: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_BATCH_CHARACTERS", 2000)
    path = write_jsonl(tmp_path / "t.jsonl", make_texts(300, seed=3))
    one = write([path], tmp_path / "one", tokenizer)
    two = write([path], tmp_path / "two", tokenizer, processes=2)
    assert one == two
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)


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

"""The plan of units: every byte and row once, whatever the sizes, and the same plan for the same files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config.run import RunConfig
from pretrain.data.documents import Document, read_piece
from pretrain.data.files import TOKEN_IDS, InputFile, find_files
from pretrain.data.units import cut, make_plan, piece_bytes, read_plan, write_plan

KINDS = st.sampled_from(["plain", "packed", "table", "text"])


def make_file(number: int, kind: str, size: int) -> InputFile:
    rows = max(1, size // 10) if kind == "table" else None
    form = {"table": "parquet", "text": "text"}.get(kind, "jsonl")
    return InputFile(f"{number}.{form}", form, size, rows, kind == "plain")


@given(st.lists(st.tuples(KINDS, st.integers(0, 5000)), min_size=1, max_size=12), st.integers(1, 3000))
@settings(max_examples=80, deadline=None)
def test_units_cover_every_byte_and_row_once_and_in_order(kinds: list[tuple[str, int]], shard_bytes: int) -> None:
    files = [make_file(number, *one) for number, one in enumerate(kinds)]
    units = list(cut(files, shard_bytes=shard_bytes))
    covered: dict[str, int] = {}
    order = []
    for piece in (piece for unit in units for piece in unit):
        path = piece.file.path
        order.append(piece.file)
        assert piece.start == covered.get(path, 0)
        total = piece.file.size if piece.file.rows is None else piece.file.rows
        covered[path] = total if piece.stop is None else piece.stop
        assert piece.stop is None or piece.start < piece.stop < total
    assert list(dict.fromkeys(order)) == files
    assert all(covered[f.path] == (f.size if f.rows is None else f.rows) for f in files)
    for unit in units:
        stored = sum(map(piece_bytes, unit))
        # Only what cannot be cut may be larger; a table by about a row.
        assert stored <= shard_bytes + 20 or (len(unit) == 1 and not unit[0].file.is_seekable_lines)
    assert list(cut(files, shard_bytes=shard_bytes)) == units


def test_files_are_put_together_until_a_shard_is_full() -> None:
    files = [make_file(number, "packed", size) for number, size in enumerate([40, 40, 40, 200, 10, 10])]
    found = [[piece.file.size for piece in unit] for unit in cut(files, shard_bytes=100)]
    assert found == [[40, 40], [40], [200], [10, 10]]


def test_a_chunk_of_tokens_is_a_unit_whatever_its_size() -> None:
    files = [InputFile(f"{n}.jsonl", TOKEN_IDS, size, None, True) for n, size in enumerate([10, 10, 900])]
    assert [len(unit) for unit in cut(files, shard_bytes=100)] == [1, 1, 1]


@pytest.mark.parametrize("shard_bytes", [1, 50, 333, 4000])
def test_pieces_of_a_file_hold_its_documents_once_and_in_order(
    shard_bytes: int, tmp_path: Path, write_jsonl: Callable, make_texts: Callable
) -> None:
    texts = make_texts(30, seed=9)
    files = find_files([str(write_jsonl(tmp_path / "t.jsonl", texts))], key="k")
    found = [
        item.text
        for unit in cut(files, shard_bytes=shard_bytes)
        for piece in unit
        for item in read_piece(piece, text_key="text", max_line_bytes=10**6)
        if isinstance(item, Document)
    ]
    assert found == texts


def test_a_plan_read_back_is_the_plan_and_does_not_know_of_workers(config: RunConfig, tmp_path: Path) -> None:
    config.data.shard_bytes = 3000
    files = {name: find_files(source.paths, key="k") for name, source in config.data.sources.items()}
    plan = make_plan(config, files, tokenizer="f")
    assert [unit.number for unit in plan.units] == list(range(len(plan.units)))
    assert len({unit.key for unit in plan.units}) == len(plan.units) > 8
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    again = make_plan(config, files, tokenizer="f")
    assert again == plan
    other = make_plan(config, files, tokenizer="g")
    assert not {unit.key for unit in other.units} & {unit.key for unit in plan.units}
    config.data.max_rejected_share = 0.5
    for asked, meant in ((None, 0.5), (0.6, 0.6), (0.0, 0.0)):
        config.data.max_rejected_bytes_share = asked
        wanted = replace(plan, max_rejected_share=0.5, max_rejected_bytes_share=meant)
        assert make_plan(config, files, tokenizer="f") == wanted
    assert plan.max_rejected_bytes_share == 0.01

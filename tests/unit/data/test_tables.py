"""Parquet and Arrow tables against what pyarrow wrote into them."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data import tables
from pretrain.data.documents import Document, Piece, Rejected, TokenRow, read_piece
from pretrain.data.files import InputFile, find_files

TEXTS = [f"row {i} 数据\n" for i in range(1000)]
TABLE = pa.table({"id": list(range(1000)), "text": TEXTS, "blob": [b"\0" * 50] * 1000})
KINDS = ["parquet", "stream", "file"]


def write(folder: Path, kind: str, table: pa.Table, *, group_rows: int = 300) -> InputFile:
    path = folder / ("t.parquet" if kind == "parquet" else "t.arrow")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group_rows)
    else:
        open_writer = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, open_writer(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=group_rows)
    return found(str(path))


def found(path: str) -> InputFile:
    (file,) = find_files([path], key="k")
    return file


def read(
    file: InputFile, start: int = 0, stop: int | None = None, *, skip: int = 0, limit: int = 1 << 20
) -> list[Document | TokenRow | Rejected]:
    return list(read_piece(Piece(file, start, stop), text_key="text", max_line_bytes=limit, skip=skip))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_in_order_and_any_range_of_them_alone(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path, kind, TABLE)
    assert file.rows == 1000
    whole = read(file)
    assert whole == [Document(text, None, file.path, i) for i, text in enumerate(TEXTS, start=1)]
    for start, stop, skip in ((0, 1, 0), (299, 301, 0), (1, 999, 5), (300, 600, 0), (650, None, 300), (0, 1000, 1000)):
        assert read(file, start, stop, skip=skip) == whole[start:stop][skip:]


@pytest.mark.parametrize("kind", KINDS)
def test_bad_rows_are_named_and_the_others_are_read(kind: str, tmp_path: Path) -> None:
    texts = [b"fine", None, b"", b"a\xff", b"a\0", b"y" * 300, b"last"]
    column = pa.array(texts, pa.binary())
    metas = [{"split": "validation"}, None, None, None, None, None, {"split": "dev"}]
    file = write(tmp_path, kind, pa.table({"text": column, "meta": metas}))
    first, *bad = read(file, limit=200)
    assert first == Document("fine", "validation", file.path, 1)
    assert [(item.reason, item.line) for item in bad] == [
        ("not_text", 2),
        ("empty", 3),
        ("invalid_utf8", 4),
        ("nul_byte", 5),
        ("too_long", 6),
        ("bad_split", 7),
    ]


@pytest.mark.parametrize(
    "text_type",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())],
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type_of_text_is_read(kind: str, text_type: pa.DataType, tmp_path: Path) -> None:
    file = write(tmp_path, kind, pa.table({"text": pa.array(["a", "b", "a"]).cast(text_type)}))
    assert [item.text for item in read(file)] == ["a", "b", "a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_without_text_is_lost_whole_and_says_so_once(kind: str, tmp_path: Path) -> None:
    (item,) = read(write(tmp_path, kind, TABLE.drop_columns("text")))
    assert item.is_damage and item.reason == "missing_text" and "it has 'id', 'blob'" in item.detail
    (item,) = read(write(tmp_path, kind, pa.table({"text": [1, 2]})))
    assert item.is_damage and item.reason == "not_text" and "holds int64" in item.detail


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_table_is_damage_after_the_rows_that_could_be_read(kind: str, tmp_path: Path) -> None:
    file = write(tmp_path, kind, TABLE)
    path = Path(file.path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    *documents, last = read(found(file.path))
    assert last.is_damage and last.reason == "damaged" and f"What follows row {len(documents)} is lost" in last.detail
    assert [item.text for item in documents] == TEXTS[: len(documents)]
    assert found(file.path).rows is None
    path.unlink()
    (item,) = read(file)
    assert (item.reason, item.is_damage) == ("vanished", True)


@pytest.mark.parametrize("kind", KINDS)
def test_tables_behind_fsspec_are_read(kind: str, tmp_path: Path) -> None:
    local = write(tmp_path, kind, TABLE)
    address = f"memory://tables/{local.name}"
    fsspec.filesystem("memory").pipe(address.removeprefix("memory:/"), Path(local.path).read_bytes())
    remote = found(address)
    assert (remote.rows, remote.size) == (local.rows, local.size)
    assert [item.text for item in read(remote, 290, 310)] == TEXTS[290:310]


def test_batches_are_small_where_documents_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_BATCH_BYTES", 1000)
    sizes = []
    values = tables._values
    monkeypatch.setattr(tables, "_values", lambda batch, key: sizes.append(batch.num_rows) or values(batch, key))
    texts = [f"{i:0100}" for i in range(300)]
    file = write(tmp_path, "parquet", pa.table({"text": texts}))
    assert [item.text for item in read(file)] == texts
    assert max(sizes) <= 10

"""Reading lines and text files: every packing, every piece, and what is said of lines that cannot be used."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data import lines
from pretrain.data.documents import Document, Piece, Rejected, TokenRow, read_piece
from pretrain.data.files import InputFile, find_files
from pretrain.data.records import REASONS, spelt_out

ROWS = [
    {"text": f"document {i} \u2028 数据\r\n", "meta": {"split": "validation" if i % 3 == 0 else "train"}}
    for i in range(500)
]
RAW = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
PACKINGS = ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"]


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    path.write_bytes(content)
    return path


def found(path: Path | str, *, token_ids: bool = False) -> InputFile:
    (file,) = find_files([str(path)], key="k", token_ids=token_ids)
    return file


def read(path: Path | Piece, *, limit: int = 1 << 20, **options: object) -> list[Document | TokenRow | Rejected]:
    piece = path if isinstance(path, Piece) else Piece(found(path))
    return list(read_piece(piece, text_key="text", max_line_bytes=limit, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PACKINGS)
@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_every_packing_gives_the_same_documents(
    name: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for constant in ("_CHUNK_BYTES", "_UNPACKED_CHUNK_BYTES"):
        monkeypatch.setattr(lines, constant, chunk_bytes)
    path = write(tmp_path / name, RAW + b"\n\n")
    assert read(path) == [
        Document(row["text"], row["meta"]["split"], str(path), i) for i, row in enumerate(ROWS, start=1)
    ]


def test_zst_and_gz_files_of_several_frames_are_read_to_the_end(tmp_path: Path) -> None:
    half = RAW.index(b"\n", len(RAW) // 2) + 1
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "t.jsonl.zst").write_bytes(pack(RAW[:half]) + pack(RAW[half:]))
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(RAW[:half]) + gzip.compress(RAW[half:]))
    for name in ("t.jsonl.zst", "t.jsonl.gz"):
        assert len(read(tmp_path / name)) == len(ROWS)


def test_a_zst_file_with_a_window_of_256_mib_is_read(tmp_path: Path) -> None:
    long = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=long).compressobj()
    packed = packer.compress(RAW) + packer.flush()
    assert zstandard.get_frame_parameters(packed).window_size == 1 << 28
    (tmp_path / "t.jsonl.zst").write_bytes(packed)
    assert len(read(tmp_path / "t.jsonl.zst")) == len(ROWS)
    (tmp_path / "t.jsonl.zst").write_bytes(packed[:-9])
    assert read(tmp_path / "t.jsonl.zst")[-1].is_damage


def test_another_field_can_hold_the_text_and_a_document_without_mark_has_no_split(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"content": "a", "meta": "x"}\n{"content": ""}')
    items = list(read_piece(Piece(found(path)), text_key="content", max_line_bytes=100))
    assert items[0] == Document("a", None, str(path), 1)
    assert (items[1].reason, items[1].is_empty, items[1].line) == ("empty", True, 2)


BAD_LINES = [
    (b'{"text": "x"', "invalid_json", "not JSON"),
    (b'{"text": "\xff"}', "invalid_utf8", "byte 0xff at offset 10"),
    (b'{"body": "x"}', "missing_text", "no field 'text'; it has 'body'"),
    (b'{"text": 3}', "not_text", "holds int, not a string"),
    (b'{"text": null}', "not_text", "holds null"),
    (b'{"text": ""}', "empty", "is empty"),
    (b'["x"]', "invalid_json", "a JSON list"),
    (b'"x"', "invalid_json", "a JSON str"),
    (b'{"text": "\\ud800"}', "lone_surrogate", "lone surrogate at character 0"),
    (b'{"text": "a\\u0000b"}', "nul_byte", "a NUL at character 1"),
    (b'{"text": "a\0b"}', "nul_byte", "a NUL byte at offset 11"),
    (b"\0" * 40, "nul_byte", "a NUL byte at offset 0"),
    (b'{"text": "x", "meta": {"split": "valid"}}', "bad_split", "meta.split='valid'; allowed are 'train'"),
    (b"[" * 100_000, "invalid_json", ""),
    (b'{"text": "x", "n": ' + b"9" * 5000 + b', "e": "\\ud800"}', "invalid_json", ""),
    (b"\xef\xbb\xbf" + b'{"text": "x"}', "invalid_json", "BOM"),
    (b'{"text": "' + b"y" * 300_000 + b'"}', "too_long", "300,012 bytes, longer than data.max_line_bytes=200,000"),
]


@pytest.mark.parametrize(("line", "reason", "detail"), BAD_LINES)
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.zst"])
def test_a_bad_line_is_named_and_the_others_are_read(
    line: bytes, reason: str, detail: str, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, b'{"text": "fine"}\n \n' + line + b'\n{"text": "fine"}\n')
    first, bad, last = read(path, limit=200_000)
    assert (first.text, first.line, last.text, last.line) == ("fine", 1, "fine", 4)
    assert (bad.reason, bad.file, bad.line, bad.is_damage) == (reason, str(path), 3, False)
    assert detail in bad.detail
    assert reason in REASONS
    assert bad.byte == (19 if name == "t.jsonl" else None)


def test_what_json_accepts_and_orjson_does_not_is_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", b'{"text": "x", "score": NaN}\n{"text": "y", "other": "\\ud800"}\n')
    assert [item.text for item in read(path)] == ["x", "y"]


@pytest.mark.parametrize("name", ["t.jsonl.gz", "t.jsonl.zst"])
def test_a_torn_or_corrupt_file_is_never_taken_for_a_short_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_UNPACKED_CHUNK_BYTES", 1000)
    path = write(tmp_path / name, RAW)
    whole = path.read_bytes()
    broken = {f"cut at {cut}": whole[:cut] for cut in (len(whole) - 1, len(whole) // 2, 3, 0)}
    broken["overwritten"] = whole[: len(whole) // 2] + b"\xff" * 40 + whole[len(whole) // 2 + 40 :]
    broken["not packed"] = b"this is not packed"
    for what, content in broken.items():
        path.write_bytes(content)
        *documents, last = read(path)
        assert isinstance(last, Rejected) and last.is_damage, what
        assert last.reason == ("wrong_kind" if what == "not packed" else "damaged"), what
        assert last.line == len(documents), what
        if what != "overwritten":  # a checksum may be all that tells
            assert [item.text for item in documents] == [row["text"] for row in ROWS[: len(documents)]], what
    path.write_bytes(whole[: len(whole) - 1])
    assert len(read(path)) > len(ROWS) // 2


def test_a_plain_file_that_was_cut_since_it_was_found_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", RAW)
    file = found(path)
    path.write_bytes(RAW[:5000])
    *documents, last = read(Piece(file))
    assert last.is_damage and "ends at byte 5,000, and had" in last.detail
    assert last.line == len(documents) == RAW[:5000].count(b"\n")


def test_a_file_that_vanished_is_damage_with_its_own_reason(tmp_path: Path) -> None:
    for name in (*PACKINGS, "t.txt"):
        path = write(tmp_path / name, RAW)
        file = found(path)
        path.unlink()
        (item,) = read(Piece(file))
        assert (item.reason, item.is_damage, item.line) == ("vanished", True, 0)
        assert "No such file" in item.detail


json_lines = st.lists(
    st.one_of(
        st.just(b""),
        st.binary(max_size=12).map(lambda line: line.replace(b"\n", b" ")),
        st.text(max_size=12).map(lambda text: json.dumps({"text": text}).encode()),
    ),
    max_size=12,
)


@settings(max_examples=80, deadline=None)
@given(json_lines, st.booleans(), st.lists(st.integers(0, 400), max_size=4), st.integers(1, 40))
def test_any_split_into_byte_ranges_yields_what_the_whole_file_yields(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], ends: bool, cuts: list[int], limit: int
) -> None:
    # After a line of text: a file may not begin with any bytes, see test_kinds.py.
    raw = b"\n".join([b'{"text": "a"}', *content]) + (b"\n" if ends else b"")
    path = tmp_path_factory.getbasetemp() / "split.jsonl"
    path.write_bytes(raw)
    file = InputFile(str(path), "jsonl", len(raw), None, True)
    bounds = sorted({0, *(cut % (len(raw) + 1) for cut in cuts)})
    pieces = [Piece(file, *pair) for pair in itertools.zip_longest(bounds, bounds[1:])]

    def key(item: Document | TokenRow | Rejected) -> tuple[object, ...]:
        return (item.text, item.split) if isinstance(item, Document) else (item.reason, item.byte)

    whole = read(Piece(file), limit=limit)
    parts = [item for piece in pieces for item in read(piece, limit=limit)]
    assert [key(item) for item in parts] == [key(item) for item in whole]
    # Independent: what Python splits, and which of it is neither blank nor too long.
    kept = [line for line in raw.split(b"\n") if line.strip() or len(line) > limit]
    assert len(whole) == len(kept)


@pytest.mark.parametrize("name", PACKINGS)
def test_skip_leaves_out_the_items_that_were_dealt_with(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, b'{"text": "a"}\n\nbad\n{"text": ""}\n{"text": "b"}\n')
    whole = read(path)
    assert len(whole) == 4
    for skip in range(6):
        assert read(path, skip=skip) == whole[skip:]


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz", "t.txt.zst"])
def test_a_text_file_is_one_document_kept_exactly(name: str, tmp_path: Path) -> None:
    text = "first line\r\n\n  second 数据 🙂 \n"
    path = write(tmp_path / name, text.encode())
    assert read(path) == [Document(text, None, str(path), 1)]
    assert read(path, skip=1) == []
    (item,) = read(path, limit=20)
    assert (
        item.reason == "too_long" and f"text file, which is one document, of {len(text.encode())} bytes" in item.detail
    )
    for content, reason in ((b"a\xff", "invalid_utf8"), (b"", "empty"), (b"a\0", "nul_byte")):
        (item,) = read(write(path, content))
        assert item.reason == reason


def test_a_line_of_100_mb_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.zst"
    packer = zstandard.ZstdCompressor().compressobj()
    with path.open("wb") as stream:
        stream.write(packer.compress(b'{"text": "a"}\n{"text": "'))
        for _ in range(100):
            stream.write(packer.compress(b"y" * 1_000_000))
        stream.write(packer.compress(b'"}\n{"text": "b"}\n') + packer.flush())
    program = (
        "import resource, sys\n"
        "from pretrain.data.documents import Piece, read_piece\n"
        "from pretrain.data.files import find_files\n"
        "(file,) = find_files([sys.argv[1]], key='k')\n"
        "import pyarrow, zstandard\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "items = list(read_piece(Piece(file), text_key='text', max_line_bytes=1 << 20))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, items[1].reason, items[1].detail[:26])\n"
    )
    out = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True).stdout
    grown_kib, reason, detail = out.split(maxsplit=2)
    assert (reason, detail.strip()) == ("too_long", "a line of 100,000,012 bytes"[:26])
    assert int(grown_kib) < 30_000, "the line is 97,000 KiB"


def token_line(ids: object, source: object = "c4") -> bytes:
    return json.dumps({"token_ids": ids, "source": source}).encode() + b"\n"


def test_rows_of_tokens_are_checked_for_length_and_type(tmp_path: Path) -> None:
    path = write(
        tmp_path / "train_000.jsonl",
        token_line([1, 2, 2**31 - 1])
        + token_line([1, 2])
        + token_line([1, 2, -3])
        + token_line([1, 2, 2**31])
        + token_line([1, 2, 1.0])
        + token_line(["1", "2", "3"])
        + token_line([[1], [2, 3], []])
        + token_line("abc")
        + token_line([1, 2, 3], None)
        + token_line([4, 5, 6], "arxiv"),
    )
    items = list(read_piece(Piece(found(path, token_ids=True)), text_key="text", max_line_bytes=1000, row_tokens=3))
    rows = [item for item in items if isinstance(item, TokenRow)]
    assert [(row.ids.tolist(), row.source, row.line) for row in rows] == [
        ([1, 2, 2**31 - 1], "c4", 1),
        ([4, 5, 6], "arxiv", 10),
    ]
    assert all(row.ids.dtype == np.int32 for row in rows)
    assert [item.reason for item in items if isinstance(item, Rejected)] == [
        "wrong_length", "bad_token_id", "bad_token_id", "bad_token_id", "bad_token_id", "bad_token_id",
        "missing_text", "unknown_source",
    ]  # fmt: skip
    assert "token id -3 at position 2" in items[2].detail


def test_counts_of_rejects_are_told_with_their_meaning() -> None:
    counts = {"invalid_utf8": 1_200, "nul_byte": 2, "of_a_later_version": 1}
    assert spelt_out(counts) == (
        "1,200 invalid_utf8 (bytes that are not UTF-8), 2 nul_byte (holds a NUL byte), 1 of_a_later_version"
    )
